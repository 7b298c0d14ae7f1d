"""DeepSpeed ZeRO-1, -2 and -3: optimizer state, gradients too, or also the weights in shards, one per process."""

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

from sam3dist.strategies.loss_scale import LossScale
from sam3dist.strategies.precision import autocast, name_of, resolve_precision
from sam3dist.strategies.processes import average_statistics, join_group, rank_and_size, share_statistics
from sam3dist.strategies.zero_state import ZeroState

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil

WHOLE_BELOW = 10_000
"""ZeRO-3 keeps parameters with fewer elements whole on every rank: gathering them costs more than it saves."""
BUCKET, ALIGNED = 500_000_000, 1024
"""Numbers that DeepSpeed sends at once, where a network has as many, in multiples of what it can cut evenly."""


class DeepSpeedStrategy:
    """See protocol.Strategy.

    Offloaded, the optimizer's state and its own float32 weights lie in the CPU's memory, where torch's AdamW updates
    them: gradients travel there and weights back at every step. DeepSpeedCPUAdam would be faster at that, but is
    compiled on first use. With offload=all the shards of ZeRO-3's network lie there as well, and those of a layer
    travel to the GPU when it is its turn.
    """

    def __init__(self, config: DistillConfig, device: torch.device) -> None:
        join_group(device)
        self.device = device
        self.rank, self.world_size = rank_and_size()
        own: Any = config.strategy  # a DeepSpeedConfig, or a namespace like it
        self.stage: int = own.zero_stage
        self.offload: str | None = own.offload
        self.accumulate = config.optim.accumulate
        self.max_norm = config.optim.clip_grad_norm
        self.images_per_batch = config.data.images_per_batch
        self.dtype = resolve_precision(config.strategy.precision, device)
        self.precision = name_of(self.dtype)
        self.scale = LossScale(self.dtype, device)
        self.overflowed = False
        self.added = 0  # losses whose gradients wait for `step`

    def setup(self, pupil: Pupil, make_optimizer: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
        deepspeed = quiet_deepspeed(self.device)
        self.pupil = pupil.to(self.device)
        share_statistics(pupil)
        # A torch optimizer: DeepSpeed's own are compiled on first use, which takes minutes and a matching CUDA toolkit.
        # fp16 is our own autocast: under DeepSpeed's, a GradScaler unscales each group after all have been clipped.
        self.engine, optimizer, _, _ = deepspeed.initialize(
            model=autocast(pupil, self.device, torch.float16) if self.scale.dynamic else pupil,
            optimizer=make_optimizer(pupil),
            config=self._settings(sum(parameter.numel() for parameter in pupil.parameters())),
        )
        self.state = ZeroState(deepspeed.zero, optimizer, pupil, self.stage, self.scale)
        return self.engine, optimizer

    def _settings(self, parameters: int) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "overlap_comm": self.device.type == "cuda"}
        # Its buffers are as large as its buckets, by default 2 GB, a thousand times what a small student fills.
        bucket = min(BUCKET, -(-parameters // ALIGNED) * ALIGNED)
        zero["reduce_bucket_size"] = zero["allgather_bucket_size"] = bucket
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = WHOLE_BELOW
        in_memory = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        if self.offload is not None:
            zero["offload_optimizer"] = in_memory
        if self.offload == "all":
            zero["offload_param"] = in_memory
        settings = {
            "train_micro_batch_size_per_gpu": self.images_per_batch,
            "gradient_accumulation_steps": self.accumulate,
            "gradient_clipping": self.max_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # it would be compiled; torch's AdamW updates on the CPU, too
        }
        if self.dtype is torch.bfloat16:
            # Not DeepSpeed's "bf16", which keeps no float32 weights for what autocast computes in float32.
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        return settings

    def backward(self, loss: Tensor) -> None:
        if self.scale.dynamic:
            self.engine.optimizer.override_loss_scale(self.scale.value)  # multiplies losses, divides norm and gradients
            self.scale.watch(loss)
        self.engine.backward(loss)  # divides by the number of accumulated losses
        self.added += 1
        if self.added < self.accumulate:
            self.engine.step()  # only counts; the last call, in `step`, updates

    def step(self, max_norm: float) -> float:
        assert max_norm == self.max_norm, "DeepSpeed is told at its start how to clip"
        self.engine.step()  # without an update if the norm is not finite
        self.added = 0
        norm = float(self.engine.get_global_grad_norm())
        self.overflowed = self.scale.after_step(norm)
        assert isfinite(norm) or not self.engine.was_step_applied()
        return norm

    def training_state(self) -> dict[str, Any]:
        return self.state.training_state()

    def load(self, directory: Path) -> None:
        self.state.load(directory)

    def student_state(self) -> dict[str, Tensor] | None:
        student = self.pupil.student
        average_statistics(student)
        kept = student.state_dict().keys() if self.rank == 0 else ()
        weights = self.state.weights(student, kept)
        return weights if self.rank == 0 else None


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
