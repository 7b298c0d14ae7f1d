"""FSDP2: parameters, gradients and optimizer state in shards, one per process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sam3dist.models.segmenter import SHARDABLE
from sam3dist.strategies.loss_scale import LossScale
from sam3dist.strategies.precision import autocast, name_of, resolve_precision
from sam3dist.strategies.processes import average_statistics, join_group, rank_and_size, share_statistics
from sam3dist.strategies.training_state import load_training_state, training_state
from sam3dist.strategies.update import clipped_update

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil


class FsdpStrategy:
    """See protocol.Strategy."""

    def __init__(self, config: DistillConfig, device: torch.device) -> None:
        join_group(device)
        self.device = device
        self.rank, self.world_size = rank_and_size()
        self.accumulate = config.optim.accumulate
        own: Any = config.strategy  # an FsdpConfig, or a namespace like it
        self.reshard_after_forward: bool = own.reshard_after_forward
        self.offload: bool = own.offload
        self.dtype = resolve_precision(config.strategy.precision, device)
        self.precision = name_of(self.dtype)
        self.scale = LossScale(self.dtype, device)
        self.overflowed = False
        self.added = 0  # losses whose gradients wait for `step`

    def setup(self, pupil: Pupil, make_optimizer: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
        # Its outputs are never changed in place, which is what it warns of.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        pupil.to(self.device)
        with torch.no_grad():
            for tensor in (*pupil.parameters(), *pupil.buffers()):
                dist.broadcast(tensor, src=0)  # each rank keeps a shard of its own copy
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        # The layers, nearly all of the weights, travel in half precision to a GPU. Inside, autocast decides about
        # precision as it does under DDP; that of CPUs cannot normalise float32 activations with bf16 weights.
        policy = MixedPrecisionPolicy(
            param_dtype=self.dtype if self.device.type == "cuda" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        pinned = self.device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pinned) if self.offload else OffloadPolicy()
        reshard = self.reshard_after_forward
        for part in pupil.student.modules():
            if isinstance(part, SHARDABLE):
                fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, offload_policy=offload)
        self.root = fully_shard(pupil, mesh=mesh, offload_policy=offload)
        self.pupil = pupil
        self.parameters = dict(pupil.named_parameters())  # the shards; after a forward call the names stand for wholes
        share_statistics(pupil)
        self.optimizer = make_optimizer(pupil)
        self._expect_next()
        return autocast(pupil, self.device, self.dtype), self.optimizer

    def backward(self, loss: Tensor) -> None:
        self.scale.scaled(loss / self.accumulate).backward()
        self.added += 1
        self._expect_next()

    def _expect_next(self) -> None:
        """Only the last of the accumulated losses averages gradients over the ranks."""
        self.root.set_requires_gradient_sync(self.added + 1 == self.accumulate)

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
        start = "student."
        state: dict[str, Tensor] = {}
        for name, value in self.pupil.state_dict().items():
            if name.startswith(start):
                moved: Any = value.to(self.device)
                whole = moved.full_tensor() if isinstance(moved, DTensor) else moved
                if self.rank == 0:
                    state[name.removeprefix(start)] = whole.detach().to("cpu", copy=True)
        return state if self.rank == 0 else None
