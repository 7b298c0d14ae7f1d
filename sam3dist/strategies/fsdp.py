"""FSDP2: parameters, gradients and optimizer state in shards, one per process; any number of them can resume."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from sam3dist.errors import CheckpointError
from sam3dist.models.segmenter import SHARDABLE
from sam3dist.strategies.precision import autocast, resolve_precision
from sam3dist.strategies.processes import join_group, rank_and_size, share_statistics
from sam3dist.strategies.update import clipped_update

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil


class FsdpStrategy:
    """See protocol.Strategy."""

    sharded = True

    def __init__(self, config: DistillConfig, device: torch.device) -> None:
        join_group(device)
        self.device = device
        self.rank, self.world_size = rank_and_size()
        self.accumulate = config.optim.accumulate
        own: Any = config.strategy  # an FsdpConfig, or a namespace like it
        self.reshard_after_forward: bool = own.reshard_after_forward
        self.dtype = resolve_precision(config.strategy.precision, device)
        self.precision = "fp32" if self.dtype is None else "bf16"
        self.added = 0  # losses whose gradients wait for `step`

    def setup(self, pupil: Pupil, make_optimizer: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
        # Its outputs are never changed in place, which is what it warns of.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        pupil.to(self.device)
        with torch.no_grad():
            for tensor in (*pupil.parameters(), *pupil.buffers()):
                dist.broadcast(tensor, src=0)  # each rank keeps a shard of its own copy
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        # The layers, nearly all of the weights, travel as bf16 to a GPU. Inside, autocast decides about precision as it
        # does under DDP; that of CPUs cannot normalise float32 activations with bf16 weights.
        policy = MixedPrecisionPolicy(
            param_dtype=self.dtype if self.device.type == "cuda" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        for part in pupil.student.modules():
            if isinstance(part, SHARDABLE):
                fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=self.reshard_after_forward)
        self.root = fully_shard(pupil, mesh=mesh)
        self.pupil = pupil
        share_statistics(pupil)
        self.optimizer = make_optimizer(pupil)
        self._expect_next()
        return autocast(pupil, self.device, self.dtype), self.optimizer

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulate).backward()
        self.added += 1
        self._expect_next()

    def _expect_next(self) -> None:
        """Only the last of the accumulated losses averages gradients over the ranks."""
        self.root.set_requires_gradient_sync(self.added + 1 == self.accumulate)

    def step(self, max_norm: float) -> float:
        norm = clipped_update(self.optimizer, max_norm)
        self.added = 0
        self._expect_next()
        return norm

    def save(self, directory: Path) -> None:
        weights, optimizer = get_state_dict(self.pupil, self.optimizer)
        dcp.save({"pupil": weights, "optimizer": optimizer}, checkpoint_id=directory)

    def load(self, directory: Path) -> None:
        weights, optimizer = get_state_dict(self.pupil, self.optimizer)
        state: dict[str, Any] = {"pupil": weights, "optimizer": optimizer}
        try:
            # Partial: weights that no loss reached have no optimizer state, and need none.
            dcp.load(state, checkpoint_id=directory, planner=DefaultLoadPlanner(allow_partial_load=True))
        except (CheckpointException, OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[-1]
            raise CheckpointError(f"{directory}: cannot be resumed ({reason}).") from error
        set_state_dict(self.pupil, self.optimizer, model_state_dict=state["pupil"], optim_state_dict=state["optimizer"])

    def student_state(self) -> dict[str, Tensor] | None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole: dict[str, Any] = get_model_state_dict(self.pupil, options=options)  # empty on the other ranks
        if self.rank != 0:
            return None
        start = "student."
        return {name.removeprefix(start): value for name, value in whole.items() if name.startswith(start)}
