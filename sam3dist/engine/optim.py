"""AdamW with linear warm-up and cosine decay; the learning rate is a function of the step alone."""

from __future__ import annotations

from math import cos, pi
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import AdamW, Optimizer

if TYPE_CHECKING:
    from sam3dist.config.distill import OptimConfig

DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
"""Only their `weight` decays. Norms, biases, embeddings, queries and positions have no scale to keep small."""


def make_optimizer(module: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW over the trainable parameters in two groups: with and without weight decay."""
    decayed, others = split_parameters(module)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    on_gpu = all(p.device.type == "cuda" for p in (*decayed, *others))
    return AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), fused=on_gpu or None)


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters that decay, and the others, each in the order of the modules."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad:
                (decayed if name == "weight" and isinstance(part, DECAYED) else others).append(parameter)
    return decayed, others


def learning_rate(step: int, config: OptimConfig) -> float:
    """The rate of update `step`, 1 to config.steps: up in a line to the peak, then down in half a cosine."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, config.steps)
    if step <= warmup:
        return peak * step / warmup
    share = (step - warmup) / max(config.steps - warmup, 1)
    return peak * (config.final_lr_share + (1 - config.final_lr_share) * (1 + cos(pi * share)) / 2)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
