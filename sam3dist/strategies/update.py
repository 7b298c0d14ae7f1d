"""The update of the weights under a limit on the gradient's norm, whole weights or shards of them."""

from __future__ import annotations

from math import isfinite

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def clipped_update(optimizer: Optimizer, max_norm: float) -> float:
    """The norm of the gradients before they are clipped to `max_norm`; if it is not finite, nothing is updated.

    Gradients are gone afterwards. Where they are in shards all ranks call it together, and the norm is that of all.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(total, DTensor):
        total = total.full_tensor()
    # The one wait for the device in a step; the assignment of queries has waited before it anyway.
    norm = total.item()
    if isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
        optimizer.step()
    optimizer.zero_grad()
    return norm
