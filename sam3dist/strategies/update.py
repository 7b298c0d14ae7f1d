"""The update of the weights under a limit on the gradient's norm, whole weights or shards of them."""

from __future__ import annotations

from math import isfinite

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sam3dist.strategies.processes import sum_over_ranks


@torch.no_grad()
def clipped_update(optimizer: Optimizer, max_norm: float, scale: float, device: torch.device) -> float:
    """The norm of the gradients before they are clipped to `max_norm`; if it is not finite, nothing is updated.

    They are those of a loss times `scale`, the norm is without it. Gradients are gone afterwards. Where they are in
    shards all ranks call it together, and the norm is that of all; the shards may lie elsewhere than on `device`, where
    ranks talk to each other.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    pieces = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    total = torch.nn.utils.get_total_norm(pieces)
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        total = sum_over_ranks(total.to(device).square()).sqrt()
    # The one wait for the device in a step; the assignment of queries has waited before it anyway.
    norm = total.item() / scale
    if isfinite(norm):
        factor = min(max_norm / (norm + 1e-6), 1.0) / scale
        if factor != 1:
            torch._foreach_mul_(pieces, factor)
        optimizer.step()
    optimizer.zero_grad()
    return norm
