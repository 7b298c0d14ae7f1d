"""DeepSpeed ZeRO-2 and ZeRO-3: optimizer state and gradients, or also the weights, in shards, one per process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam3dist.errors import CheckpointError
from sam3dist.strategies.precision import resolve_precision
from sam3dist.strategies.processes import join_group, rank_and_size

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil

TAG = "state"
WHOLE_BELOW = 10_000
"""ZeRO-3 keeps parameters with fewer elements whole on every rank: gathering them costs more than it saves."""


class DeepSpeedStrategy:
    """See protocol.Strategy. Resumes with the same number of workers only."""

    sharded = True

    def __init__(self, config: DistillConfig, device: torch.device) -> None:
        join_group(device)
        self.device = device
        self.rank, self.world_size = rank_and_size()
        own: Any = config.strategy  # a DeepSpeedConfig, or a namespace like it
        self.stage: int = own.zero_stage
        self.accumulate = config.optim.accumulate
        self.max_norm = config.optim.clip_grad_norm
        self.images_per_batch = config.data.images_per_batch
        self.dtype = resolve_precision(config.strategy.precision, device)
        self.precision = "fp32" if self.dtype is None else "bf16"
        self.added = 0  # losses whose gradients wait for `step`

    def setup(self, pupil: Pupil, make_optimizer: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
        deepspeed = quiet_deepspeed(self.device)
        self.zero = deepspeed.zero
        self.pupil = pupil.to(self.device)
        # A torch optimizer: DeepSpeed's own are compiled on first use, which takes minutes and a matching CUDA toolkit.
        self.engine, optimizer, _, _ = deepspeed.initialize(
            model=pupil, optimizer=make_optimizer(pupil), config=self._settings()
        )
        return self.engine, optimizer

    def _settings(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "overlap_comm": self.device.type == "cuda"}
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = WHOLE_BELOW
        settings = {
            "train_micro_batch_size_per_gpu": self.images_per_batch,
            "gradient_accumulation_steps": self.accumulate,
            "gradient_clipping": self.max_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
        }
        if self.dtype is not None:
            # Not DeepSpeed's "bf16", which keeps no float32 weights for what autocast computes in float32.
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        return settings

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)  # divides by the number of accumulated losses
        self.added += 1
        if self.added < self.accumulate:
            self.engine.step()  # only counts; the last call, in `step`, updates

    def step(self, max_norm: float) -> float:
        assert max_norm == self.max_norm, "DeepSpeed is told at its start how to clip"
        self.engine.step()  # without an update if the norm is not finite
        self.added = 0
        norm = float(self.engine.get_global_grad_norm())
        assert isfinite(norm) or not self.engine.was_step_applied()
        return norm

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.engine.save_checkpoint(str(directory), tag=TAG)

    def load(self, directory: Path) -> None:
        # Its files are pickles, which can run code: load only checkpoints you trust.
        try:
            path, _ = self.engine.load_checkpoint(str(directory), tag=TAG)
        except (AssertionError, OSError, RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(f"{directory}: cannot be resumed ({reason}).") from error
        if path is None:
            raise CheckpointError(f"{directory}: holds no DeepSpeed state; use an older checkpoint.")

    def student_state(self) -> dict[str, Tensor] | None:
        student = self.pupil.student
        if self.stage == 3:
            return self._gathered(student)
        return _copies(student.state_dict()) if self.rank == 0 else None

    def _gathered(self, student: nn.Module) -> dict[str, Tensor] | None:
        """One module's weights at a time are whole, so that no rank holds more than it must."""
        state: dict[str, Tensor] = {}
        for prefix, part in student.named_modules():
            with self.zero.GatheredParameters(list(part.parameters(recurse=False)), modifier_rank=None):
                if self.rank == 0:
                    own = _copies(dict(part.named_parameters(recurse=False)))
                    state |= {f"{prefix}.{name}" if prefix else name: value for name, value in own.items()}
        if self.rank != 0:
            return None
        buffers = {name: value for name, value in student.state_dict().items() if name not in state}
        return state | _copies(buffers)


def quiet_deepspeed(device: torch.device) -> Any:
    """The deepspeed module, set to this kind of device, without its chatter and without compiling anything."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # The ops it may compile: none. It would try compilers for each, and on CPUs build shared-memory communication
    # with g++ and ninja for 70 s, where plain gloo does as well.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _copies(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
