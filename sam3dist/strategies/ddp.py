"""Every process holds the whole student; gradients are averaged. Alone, this is plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sam3dist.strategies.loss_scale import LossScale
from sam3dist.strategies.precision import autocast, name_of, resolve_precision
from sam3dist.strategies.processes import average_statistics, rank_and_size, share_statistics
from sam3dist.strategies.training_state import load_training_state, training_state
from sam3dist.strategies.update import clipped_update

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil


class DdpStrategy:
    """See protocol.Strategy. Works without a process group when there is one process."""

    def __init__(self, config: DistillConfig, device: torch.device) -> None:
        self.device = device
        self.rank, self.world_size = rank_and_size()
        self.accumulate = config.optim.accumulate
        self.features_alone = config.distillation.alpha == config.distillation.beta == 0
        self.dtype = resolve_precision(config.strategy.precision, device)
        self.precision = name_of(self.dtype)
        self.scale = LossScale(self.dtype, device)
        self.overflowed = False
        self.added = 0  # losses whose gradients wait for `step`

    def setup(self, pupil: Pupil, make_optimizer: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
        self.pupil = pupil.to(self.device)
        self.parameters = dict(pupil.named_parameters())
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
        self.scale.scaled(loss / self.accumulate).backward()
        self.added += 1
        self._expect_next()

    def _expect_next(self) -> None:
        """Only the last of the accumulated losses averages gradients; DDP must know before its forward."""
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = self.added + 1 == self.accumulate  # what no_sync() sets

    def step(self, max_norm: float) -> float:
        norm = clipped_update(self.optimizer, max_norm, self.scale.value, self.device)
        self.overflowed = self.scale.after_step(norm)
        self.added = 0
        self._expect_next()
        return norm

    def training_state(self) -> dict[str, Any]:
        return training_state(self.pupil, self.parameters, self.optimizer, self.scale)

    def load(self, directory: Path) -> None:
        load_training_state(directory, self.pupil, self.parameters, self.optimizer, self.scale)

    def student_state(self) -> dict[str, Tensor] | None:
        average_statistics(self.pupil)
        if self.rank != 0:
            return None
        return {name: value.detach().cpu().clone() for name, value in self.pupil.student.state_dict().items()}
