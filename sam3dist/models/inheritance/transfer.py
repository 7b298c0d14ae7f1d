"""Filling a student with what a plan keeps of the teacher's weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model

from sam3dist.models.inheritance.fit import UNUSED, Reading, embedding_turn, site
from sam3dist.models.inheritance.plan import Plan, kept_entries
from sam3dist.models.inheritance.regression import Guess
from sam3dist.models.inheritance.spaces import PATCH_NORM, TOWERS, input_axis, space_of, stream_norms

SPARE = "mask_decoder.pixel_decoder."  # has stages that no student needs


@dataclass(frozen=True)
class Inherited:
    """Names of the student's parameters by origin."""

    copied: tuple[str, ...]
    """The teacher's tensor as it is."""
    sliced: tuple[str, ...]
    """Some of its channels, heads or queries, or its positions interpolated."""
    projected: tuple[str, ...]
    """Turned into the basis of a stream, or changed to make up for what is missing."""
    fresh: tuple[str, ...]
    """The teacher has no such parameter or a smaller one, or text prompts never use it; keeps its random start."""

    def projecting(self, prefix: str) -> Inherited:
        """The same, with what was copied or sliced of these names counted as projected."""
        moved = tuple(name for name in self.copied + self.sliced if name.startswith(prefix))
        copied, sliced = (tuple(name for name in of if name not in moved) for of in (self.copied, self.sliced))
        return Inherited(copied, sliced, self.projected + moved, self.fresh)

    def share(self, student: Sam3Model) -> float:
        """Which part of the student's parameters starts from the teacher's."""
        return 1 - sum(student.get_parameter(name).numel() for name in self.fresh) / student.num_parameters()


def same_shape(student: Sam3Model, teacher: Sam3Model) -> bool:
    """Whether the two differ at most in what text prompts never use."""
    ours, theirs = (
        {name: parameter.shape for name, parameter in net.named_parameters() if not name.startswith(UNUSED)}
        for net in (student, teacher)
    )
    return ours == {name: shape for name, shape in theirs.items() if name in ours or not name.startswith(SPARE)}


@torch.no_grad()
def transfer(plan: Plan, reading: Reading, student: Sam3Model, teacher: Sam3Model) -> Inherited:
    """Fill the student in place with the teacher's weights, wherever no axis is longer than the teacher's."""
    sources = dict(teacher.named_parameters())
    found: dict[str, list[str]] = {"copied": [], "sliced": [], "projected": [], "fresh": []}
    for name, parameter in student.named_parameters():
        source = sources.get(plan.source(name))
        fits = source is not None and source.dim() == parameter.dim() and not name.startswith(UNUSED)
        made = _made(plan, reading, name, student, teacher) if fits else None
        if made is None:
            found["fresh"].append(name)
            continue
        value, origin = made
        assert value.shape == parameter.shape, name
        parameter.copy_(value)
        found[origin].append(name)
    return Inherited(**{origin: tuple(names) for origin, names in found.items()})


def _made(plan: Plan, reading: Reading, name: str, student: Sam3Model, teacher: Sam3Model) -> tuple[Tensor, str] | None:
    """The student's parameter of this name and its origin; None where the teacher's is too small."""
    original = plan.source(name)
    source, want = teacher.get_parameter(original), student.get_parameter(name)
    special = _of_norm(plan, reading, original, teacher)
    if special is not None:
        return special, "projected"
    value: Tensor = source
    origin = "copied"
    if name.endswith("embeddings.position_embeddings"):
        value = _resize_positions(value, want.shape[1])
    if original.rsplit(".", 1)[0] in reading.added:
        value, origin = _with_added(reading, original, teacher), "projected"
    guess, reads = _guess(reading, original, teacher)
    if guess is not None:
        value, origin = _as_read(value, guess, reads, reading, original, teacher), "projected"
    for axis in range(want.dim()):
        if guess is not None and axis == reads:
            continue
        stream = space_of(original, axis)
        if stream in plan.bases:
            value, origin = _turned(plan, original, value, axis, teacher), "projected"
            continue
        kept = kept_entries(plan, name, axis, student, teacher, value.shape[axis])
        if kept is None:
            return None
        if kept != list(range(value.shape[axis])):
            value = value.index_select(axis, torch.tensor(kept, device=value.device))
    return value, "sliced" if origin == "copied" and value is not source else origin


def _of_norm(plan: Plan, reading: Reading, name: str, teacher: Sam3Model) -> Tensor | None:
    """Gain or bias of a LayerNorm of a stream with a basis; None for any other parameter."""
    module, kind = name.rsplit(".", 1)
    if module == PATCH_NORM and "vision" in plan.bases:
        assert reading.start is not None
        return reading.start[kind == "bias"]
    basis = plan.bases.get(stream_norms(teacher).get(module, ""))
    if basis is None:
        return None
    # Its own gain and bias are in the matrices that read it.
    return torch.ones_like(basis[0]) if kind == "weight" else torch.zeros_like(basis[0])


def _guess(reading: Reading, name: str, teacher: Sam3Model) -> tuple[Guess | None, int | None]:
    """How the linear map of a parameter reads, and the axis of its weight that does; None where nothing changes."""
    path, kind = name.rsplit(".", 1)
    module = teacher.get_submodule(path)
    axis = input_axis(module)
    if axis is None:
        return None, None
    guess = reading.guesses.get(site(path, space_of(f"{path}.weight", axis)))
    return guess, axis if kind == "weight" else None


def _as_read(value: Tensor, guess: Guess, axis: int | None, reading: Reading, name: str, teacher: Sam3Model) -> Tensor:
    """The weight (W A) or the bias (W c + b) of a linear map that reads what the guess is made from."""
    if axis is not None:
        return torch.tensordot(value, guess.matrix, dims=([axis], [0])).movedim(-1, axis)
    path = name.rsplit(".", 1)[0]
    module = teacher.get_submodule(path)
    weight = _with_added(reading, f"{path}.weight", teacher)
    constant = torch.tensordot(weight, guess.constant, dims=([input_axis(module)], [0]))
    if isinstance(module, nn.ConvTranspose2d):  # each output pixel has one cell of the kernel, a convolution's all
        return value + constant.mean(dim=(1, 2))
    return value + constant.reshape(len(constant), -1).sum(1)


def _with_added(reading: Reading, name: str, teacher: Sam3Model) -> Tensor:
    """The teacher's parameter, with what it takes over from missing layers."""
    path, kind = name.rsplit(".", 1)
    parameter = teacher.get_parameter(name)
    added = reading.added.get(path)
    if added is None:
        return parameter
    return parameter + (added.matrix if kind == "weight" else added.constant)


def _turned(plan: Plan, name: str, value: Tensor, axis: int, teacher: Sam3Model) -> Tensor:
    """A parameter that writes to a stream, in the stream's basis along this axis."""
    stream = space_of(name, axis)
    assert stream is not None
    turn = plan.bases[stream].T
    if name.startswith(f"{TOWERS['vision']}embeddings."):
        norm = teacher.get_submodule(PATCH_NORM)
        assert isinstance(norm, nn.LayerNorm)
        turn = embedding_turn(norm, plan.bases[stream])
    return torch.tensordot(value, turn, dims=([axis], [1])).movedim(-1, axis)


def _resize_positions(positions: Tensor, count: int) -> Tensor:
    """Learned positions [1, g*g, C] as [1, count, C] on a finer or coarser square grid; the same object if equal."""
    if positions.shape[1] == count:
        return positions
    old, new = round(positions.shape[1] ** 0.5), round(count**0.5)
    grid = positions.float().transpose(1, 2).unflatten(2, (old, old))
    return F.interpolate(grid, size=(new, new), mode="bicubic").flatten(2).transpose(1, 2)
