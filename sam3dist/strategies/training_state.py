"""What a run goes on from, as PyTorch's own modules and optimizers hold it, whole (DDP) or in shards (FSDP).

protocol.Strategy.training_state says what the tree looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam3dist.strategies.loss_scale import LossScale
from sam3dist.strategies.processes import average_statistics
from sam3dist.strategies.saved_state import SavedState

STEP = "step"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, beside the number of its steps."""


def training_state(
    pupil: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, scale: LossScale
) -> dict[str, Any]:
    """The tensors of pupil and optimizer themselves, by name. `parameters` are the optimizer's, by the pupil's names.

    All ranks call it together.
    """
    average_statistics(pupil)
    kept = {name: optimizer.state[weight] for name, weight in parameters.items() if weight in optimizer.state}
    return {
        "weights": pupil.state_dict(),
        "optimizer": {name: {key: state[key] for key in (STEP, *MOMENTS)} for name, state in kept.items()},
        **scale.state(),
    }


def load_training_state(
    directory: Path, pupil: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, scale: LossScale
) -> None:
    """Give pupil, optimizer and scale what was saved in the directory. Raises CheckpointError.

    All ranks call it together.
    """
    saved = SavedState(directory)
    group_of = {weight: group for group in optimizer.param_groups for weight in group["params"]}
    restored = {
        name: fresh_state(weight, group_of[weight])
        for name, weight in parameters.items()
        if weight in group_of and f"optimizer.{name}.{STEP}" in saved.names
    }
    saved.load({"weights": pupil.state_dict(), "optimizer": restored})
    optimizer.state.clear()
    for name, state in restored.items():
        optimizer.state[parameters[name]] = state
    load_scale(saved, scale)


def load_scale(saved: SavedState, scale: LossScale) -> None:
    """Go on with the saved scale, where this run scales losses and the saved one did."""
    own = scale.state()
    if own.keys() <= saved.names:
        saved.load(own)
        scale.restore(own)


def fresh_state(weight: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """What AdamW keeps of a weight in this group before its first step, where it would put it."""
    on_device = group.get("fused") or group.get("capturable")
    step = torch.zeros((), dtype=torch.float32, device=weight.device if on_device else "cpu")
    moments = {key: torch.zeros_like(weight, memory_format=torch.preserve_format) for key in MOMENTS}
    return {STEP: step} | {key: value.detach() for key, value in moments.items()}
