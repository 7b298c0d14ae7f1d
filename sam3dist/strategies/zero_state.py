"""The weights and AdamW's state in a ZeRO engine, gathered and handed back one after the other.

ZeRO lays the weights of a group end to end and gives each rank a stretch of them, so the borders between ranks run
through the middle of weights. AdamW sees such stretches only, and counts its steps for each. DeepSpeed's checkpoints
hold them as they are and fit one number of ranks and one stage; what is gathered here by name fits all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sam3dist.strategies.loss_scale import LossScale
from sam3dist.strategies.processes import average_statistics, rank_and_size
from sam3dist.strategies.saved_state import SavedState
from sam3dist.strategies.training_state import MOMENTS, STEP, fresh_state, load_scale

Value = TypeVar("Value", bound=Tensor)

MOST_AT_ONCE = 64 * 2**20
"""Elements that a rank reads from a checkpoint before it hands them on: 256 MB."""


class ZeroState:
    """What DeepSpeed's optimizer keeps of a pupil. All ranks call each method together."""

    def __init__(self, zero: Any, optimizer: Any, pupil: nn.Module, stage: int, scale: LossScale) -> None:
        self.zero = zero  # deepspeed.zero
        self.optimizer = optimizer
        self.scale = scale
        self.pupil = pupil
        self.stage = stage
        self.rank, self.world_size = rank_and_size()

    def weights(self, module: nn.Module, kept: Collection[str]) -> dict[str, Tensor]:
        """Copies on the CPU of these of the module's weights and buffers; no others are whole at the same time."""
        copies = {}
        for name, value in module.state_dict(keep_vars=True).items():
            with self.zero.GatheredParameters([value]):  # does nothing where weights are whole
                if name in kept:
                    copies[name] = value.detach().cpu().clone()
        return copies

    def training_state(self) -> dict[str, Any]:
        """This rank's share of protocol.Strategy.training_state, on the CPU."""
        average_statistics(self.pupil)
        state = self.pupil.state_dict(keep_vars=True)
        owners = balanced([shape_of(value).numel() for value in state.values()], self.world_size)
        own = {name for name, owner in zip(state, owners, strict=True) if owner == self.rank}
        optimizer: dict[str, dict[str, Tensor]] = {}
        flat_states = self._flat_states()
        if flat_states[0]:
            step = flat_states[0][STEP].cpu().clone()
            for name, weight in self._trained().items():
                moments = {}
                for key in MOMENTS:
                    value = self._gathered(weight, key)
                    if name in own:
                        moments[key] = value.cpu().clone()
                if name in own:
                    optimizer[name] = {STEP: step, **moments}
        return {"weights": self.weights(self.pupil, own), "optimizer": optimizer, **self.scale.state()}

    def load(self, directory: Path) -> None:
        """Give pupil, optimizer and scale what was saved in the directory. Raises CheckpointError."""
        saved = SavedState(directory)
        state = self.pupil.state_dict(keep_vars=True)
        for part in portions(state):
            read = {name: torch.empty(shape_of(value), dtype=value.dtype) for name, value in part.items()}
            saved.load({"weights": read})
            for name, value in part.items():
                with self.zero.GatheredParameters([value], modifier_rank=0):
                    value.data.copy_(read[name])
        self.optimizer.refresh_fp32_params()
        trained = {
            name: weight for name, weight in self._trained().items() if f"optimizer.{name}.{STEP}" in saved.names
        }
        if trained:
            self._load_optimizer(saved, trained)
        load_scale(saved, self.scale)

    def _load_optimizer(self, saved: SavedState, trained: Mapping[str, nn.Parameter]) -> None:
        flat_states = self._flat_states(fresh=True)
        step = torch.zeros(())
        for part in portions(trained):
            read = {
                name: {STEP: torch.zeros(()), **{key: torch.empty(shape_of(weight)) for key in MOMENTS}}
                for name, weight in part.items()
            }
            saved.load({"optimizer": read})
            for name, weight in part.items():
                for key in MOMENTS:
                    self._hand_out(weight, key, read[name][key])
                step = torch.maximum(step, read[name][STEP])
        for state in flat_states:
            state[STEP].copy_(step)  # one for all that are trained: each step updates them all

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.pupil.named_parameters() if weight.requires_grad}

    def _flat_states(self, fresh: bool = False) -> list[dict[str, Tensor]]:
        """What torch's AdamW keeps of each of this rank's stretches: nothing before its first step, unless `fresh`."""
        optimizer = self.optimizer
        stretches: list[Tensor] = (
            optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        )
        inner = optimizer.optimizer
        if fresh:
            for stretch in stretches:
                inner.state[stretch] = fresh_state(stretch, inner.param_groups[0])
        states = [inner.state.get(stretch, {}) for stretch in stretches]
        if states[0] and self.stage != 3:
            # Lets each weight know its piece of them. DeepSpeed does so after the first step of the first group, when
            # those of other groups have no state yet.
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
        return states

    def _gathered(self, weight: nn.Parameter, key: str) -> Tensor:
        """AdamW's tensor of this name for a whole weight, on every rank."""
        if self.stage == 3:
            return self.optimizer.get_full_hp_param(weight, key)
        return weight.get_full_hp_param(key)  # type: ignore[attr-defined]

    def _hand_out(self, weight: nn.Parameter, key: str, value: Tensor) -> None:
        """Keep this rank's piece of AdamW's tensor of this name for a whole weight."""
        if self.stage != 3:
            weight.set_full_hp_param(value, key)  # type: ignore[attr-defined]
            return
        # Not set_full_hp_param: it fails where the last rank's piece ends behind the weight.
        size = weight.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = pad(value.flatten(), (0, size * self.world_size - value.numel()))
        self.optimizer.set_local_hp_param(padded[size * self.rank : size * (self.rank + 1)], weight, key)


def shape_of(value: Tensor) -> torch.Size:
    """The shape of the whole tensor, which ZeRO-3 may have taken out of it."""
    return getattr(value, "ds_shape", value.shape)


def balanced(sizes: Sequence[int], owners: int) -> list[int]:
    """An owner for each thing, such that all own about as much."""
    owned = [0] * owners
    chosen = []
    for size in sizes:
        chosen.append(owned.index(min(owned)))
        owned[chosen[-1]] += size
    return chosen


def portions(state: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
    """The same tensors in portions of MOST_AT_ONCE elements, or of a single larger one."""
    part: dict[str, Value] = {}
    elements = 0
    for name, value in state.items():
        size = shape_of(value).numel()
        if part and elements + size > MOST_AT_ONCE:
            yield part
            part, elements = {}, 0
        part[name] = value
        elements += size
    if part:
        yield part
