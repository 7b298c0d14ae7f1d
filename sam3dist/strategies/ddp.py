"""Every process holds the whole student; gradients are averaged. Alone, this is plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sam3dist.errors import CheckpointError
from sam3dist.strategies.precision import autocast, resolve_precision
from sam3dist.strategies.processes import rank_and_size, share_statistics
from sam3dist.strategies.update import clipped_update

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil

FILE = "state.pt"


class DdpStrategy:
    """See protocol.Strategy. Works without a process group when there is one process."""

    sharded = False

    def __init__(self, config: DistillConfig, device: torch.device) -> None:
        self.device = device
        self.rank, self.world_size = rank_and_size()
        self.accumulate = config.optim.accumulate
        self.features_alone = config.distillation.alpha == config.distillation.beta == 0
        self.dtype = resolve_precision(config.strategy.precision, device)
        self.precision = "fp32" if self.dtype is None else "bf16"
        self.added = 0  # losses whose gradients wait for `step`

    def setup(self, pupil: Pupil, make_optimizer: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
        self.pupil = pupil.to(self.device)
        self.optimizer = make_optimizer(pupil)
        share_statistics(pupil)
        self.module = autocast(pupil, self.device, self.dtype)
        if self.world_size > 1:
            self.module = DistributedDataParallel(
                self.module,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # constants, such as rotary tables, or `share_statistics` sees to them
                gradient_as_bucket_view=True,
                # Searches the graph at every step for weights that no loss reaches. There are none, because what
                # text prompts never use is frozen, unless features alone are imitated: those come before the decoder.
                find_unused_parameters=self.features_alone,
            )
        self._expect_next()
        return self.module, self.optimizer

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulate).backward()
        self.added += 1
        self._expect_next()

    def _expect_next(self) -> None:
        """Only the last of the accumulated losses averages gradients; DDP must know before its forward."""
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = self.added + 1 == self.accumulate  # what no_sync() sets

    def step(self, max_norm: float) -> float:
        norm = clipped_update(self.optimizer, max_norm)
        self.added = 0
        self._expect_next()
        return norm

    def save(self, directory: Path) -> None:
        if self.rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            state = {"pupil": self.pupil.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, directory / FILE)

    def load(self, directory: Path) -> None:
        try:
            state = torch.load(directory / FILE, map_location=self.device, weights_only=True)
            self.pupil.load_state_dict(state["pupil"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(f"{directory / FILE}: cannot be resumed ({reason}).") from error

    def student_state(self) -> dict[str, Tensor] | None:
        if self.rank != 0:
            return None
        return {name: value.detach().cpu().clone() for name, value in self.pupil.student.state_dict().items()}
