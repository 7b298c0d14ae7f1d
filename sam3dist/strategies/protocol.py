"""What varies with the way a student is spread over processes: six methods, and nothing else in the loop does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil


class Strategy(Protocol):
    """One process's part in training. Every method is called by all ranks, equally often and in the same order."""

    rank: int
    world_size: int
    device: torch.device
    precision: str
    """What it computes in: "fp32", "bf16" or "fp16". Weights and optimizer state are always float32."""
    overflowed: bool
    """The last `step` updated nothing because gradients overflowed in fp16, and lowered the scale of the losses: no NaN
    of the run, but a step that is left out, as every framework does. Never with a loss that is not finite itself."""

    def setup(self, pupil: Pupil, make_optimizer: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
        """The pupil as it is to be called from now on, on the device, and its optimizer.

        The pupil is changed in place. Of the optimizer only `param_groups` is for the caller, to set learning rates.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of loss / optim.accumulate; the last of `accumulate` calls averages it over the ranks."""
        ...

    def step(self, max_norm: float) -> float:
        """Clip the gradient to this norm, update the weights, and return the norm before clipping.

        The norm is that of all ranks' averaged gradients, the same on every rank, without what losses are multiplied
        by in fp16. If it is not finite, nothing is updated. Gradients are gone afterwards.
        """
        ...

    def training_state(self) -> dict[str, Any]:
        """What it takes to go on from here with any strategy and any number of workers, for `dcp.save`:

            {"weights": {name: value}, "optimizer": {name: {"step", "exp_avg", "exp_avg_sq"}}, "loss_scale": value}

        Names are those of the pupil's state_dict, `optimizer` has those that have been updated; `loss_scale` is there
        in fp16. Values are tensors of
        float32 (a counter of BatchNorm is an integer) in the shapes they have in one process: whole and the same on
        every rank, or DTensors, or on one rank only, which has others of the names. They may be those of the strategy
        itself: write or copy them before the next step.
        """
        ...

    def load(self, directory: Path) -> None:
        """Go on from the training state of any strategy that `dcp.save` wrote there. Raises CheckpointError."""
        ...

    def student_state(self) -> dict[str, Tensor] | None:
        """Copies of all weights of `pupil.student` on the CPU in float32 on rank 0; None on the others."""
        ...


def make_strategy(config: DistillConfig, device: torch.device | None = None) -> Strategy:
    """The strategy of `config.strategy.kind`; `device` is this process's, by default the one its launcher gave it.

    With several workers the process group must exist, except that DeepSpeed and FSDP join that of torchrun.
    """
    from sam3dist.strategies.processes import own_device

    device = own_device(config.strategy) if device is None else torch.device(device)
    if config.strategy.kind == "ddp":
        from sam3dist.strategies.ddp import DdpStrategy

        return DdpStrategy(config, device)
    if config.strategy.kind == "fsdp":
        from sam3dist.strategies.fsdp import FsdpStrategy

        return FsdpStrategy(config, device)
    # Imported only when asked for: it takes seconds, and machines without DeepSpeed train with the others.
    from sam3dist.strategies.deepspeed import DeepSpeedStrategy

    return DeepSpeedStrategy(config, device)
