"""What of a teacher a smaller student keeps: which layers, heads and channels, and which basis of each stream."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Model

from sam3dist.models.inheritance.bases import basis_of_moments, chosen_channels, weight_moments
from sam3dist.models.inheritance.even import even_heads, evenly, of_heads
from sam3dist.models.inheritance.spaces import (
    STACKS,
    TOWERS,
    head_count,
    input_axis,
    space_of,
    stream_norms,
    towers,
    unit_readers,
)
from sam3dist.models.inheritance.survey import Survey
from sam3dist.models.layers import best_layers, even_layers, vision_layers

LAYER = re.compile("({})(\\d+)\\.".format("|".join(map(re.escape, STACKS.values()))))


@dataclass(frozen=True)
class Plan:
    """Names in `units` are the teacher's. Whatever is not named here is kept evenly (`even`)."""

    layers: dict[str, list[int]]
    """By stack: the teacher's layer for each of the student's."""
    units: dict[str, list[int]] = field(default_factory=dict)
    """By space: the heads or hidden channels that stay."""
    bases: dict[str, Tensor] = field(default_factory=dict)
    """By stream: a basis [n, k]; a stream that is as wide as the teacher's has none."""
    gains: dict[str, float] = field(default_factory=dict)
    """By stream with a basis: how much of a token's length the basis keeps, where that is not measured."""

    def source(self, name: str) -> str:
        """The teacher's parameter or module for one of the student's: the same, in the layer that is inherited."""
        match = LAYER.match(name)
        stack = match and next(stack for stack, prefix in STACKS.items() if prefix == match[1])
        if match is None or stack not in self.layers:  # no layer, or one of a tower that the teacher does not have
            return name
        return f"{match[1]}{self.layers[stack][int(match[2])]}.{name[match.end() :]}"

    def stays(self, name: str) -> bool:
        """Whether a parameter or module of the teacher's has a counterpart in the student, as far as layers go."""
        match = LAYER.match(name)
        return match is None or any(
            match[1] == STACKS[stack] and int(match[2]) in kept for stack, kept in self.layers.items()
        )


def even_plan(student: Sam3Model, teacher: Sam3Model) -> Plan:
    """Layers and channels evenly spaced."""
    return Plan(_even_layers(student, teacher))


def weight_plan(student: Sam3Model, teacher: Sam3Model) -> Plan:
    """Chosen by the weights alone: each stream in the basis of its largest singular directions, layers evenly."""
    bases, gains = {}, {}
    for tower, width in _narrower(student, teacher).items():
        moments = weight_moments(teacher, tower)
        bases[tower] = basis_of_moments(moments, width)
        share = (bases[tower].T @ moments @ bases[tower]).trace() / moments.trace()
        gains[tower] = float(share.clamp(max=1).sqrt())
    layers = _even_layers(student, teacher)
    return Plan(layers, _best_units(student, teacher, layers, _weight_scores(teacher)), bases, gains)


def measured_plan(student: Sam3Model, teacher: Sam3Model, survey: Survey) -> Plan:
    """The layers, heads and hidden channels with the best scores. Streams: the channels with the best scores where
    those were measured, else the principal directions of what the student's LayerNorms will read.
    """
    layers = _best_layers(student, teacher, survey)
    bases = {}
    for tower, width in _narrower(student, teacher).items():
        if tower in survey.channels:
            scores = survey.channels[tower]
            bases[tower] = chosen_channels(_best(scores, width), len(scores)).to(scores)
        else:
            norms = [name for name, of in stream_norms(teacher).items() if of == tower and Plan(layers).stays(name)]
            bases[tower] = basis_of_moments(torch.stack([survey.moments[name] for name in norms]).sum(0), width)
    return Plan(layers, _best_units(student, teacher, layers, survey.units), bases)


def kept_entries(
    plan: Plan, name: str, axis: int, student: Sam3Model, teacher: Sam3Model, have: int
) -> list[int] | None:
    """Which of the `have` entries of the teacher's axis the student's parameter keeps; None if it has too few.

    Not for the axis of a stream that has a basis.
    """
    original = plan.source(name)
    want = student.get_parameter(name).shape[axis]
    space, own_space = space_of(original, axis), space_of(name, axis)
    if space is not None and own_space is not None and space not in TOWERS:
        heads, wanted = head_count(teacher, space), head_count(student, own_space)
        if space in plan.units:
            return of_heads(plan.units[space], have // (heads or have))
        if heads and wanted:
            return even_heads(heads, have, wanted, want)
    if want > have:
        return None
    # Four position codes side by side: y, x, width, height of a box.
    blocks = 4 if name == "detr_decoder.ref_point_head.layer1.weight" and axis == 1 else 2
    return evenly(have, want, blocks)


def _even_layers(student: Sam3Model, teacher: Sam3Model) -> dict[str, list[int]]:
    layers = {}
    for stack, (ours, theirs) in _stacks(student, teacher).items():
        if stack == "vision":
            layers[stack] = vision_layers(len(theirs), _global(teacher), len(ours), _global(student))
        else:
            layers[stack] = even_layers(len(theirs), len(ours))
    return layers


def _best_layers(student: Sam3Model, teacher: Sam3Model, survey: Survey) -> dict[str, list[int]]:
    layers = _even_layers(student, teacher)
    for stack, (ours, theirs) in _stacks(student, teacher).items():
        kinds, wanted = [False] * len(theirs), [False] * len(ours)
        if stack == "vision":
            kinds = [layer in _global(teacher) for layer in range(len(theirs))]
            wanted = [layer in _global(student) for layer in range(len(ours))]
        layers[stack] = best_layers(survey.layers[stack], kinds, wanted) or layers[stack]
    return layers


def _stacks(student: Sam3Model, teacher: Sam3Model) -> dict[str, tuple[Any, Any]]:
    """The layers of both by stack, of those that both have."""
    found: dict[str, list[Any]] = {}
    for net in (student, teacher):
        parts = towers(net)
        for stack in STACKS:
            if stack in TOWERS and stack not in parts:
                continue
            found.setdefault(stack, []).append(net.get_submodule(STACKS[stack].removesuffix(".")))
    return {stack: (pair[0], pair[1]) for stack, pair in found.items() if len(pair) == 2}


def _global(net: Sam3Model) -> list[int]:
    config: Any = net.config.vision_config
    return list(config.backbone_config.global_attn_indexes)


def _narrower(student: Sam3Model, teacher: Sam3Model) -> dict[str, int]:
    """The student's width of every stream that both have and that is narrower in the student."""
    ours, theirs = towers(student), towers(teacher)
    widths = {
        tower: (ours[tower].config.hidden_size, theirs[tower].config.hidden_size) for tower in ours.keys() & theirs
    }
    return {tower: want for tower, (want, have) in sorted(widths.items()) if want < have}


def _best_units(
    student: Sam3Model, teacher: Sam3Model, layers: dict[str, list[int]], scores: dict[str, Tensor]
) -> dict[str, list[int]]:
    """The best heads and hidden channels wherever the student has fewer, of the same width."""
    plan, units = Plan(layers), {}
    known = unit_readers(teacher)
    for name, own_space in unit_readers(student).items():
        space = known.get(plan.source(name))
        if space is None:
            continue
        axis = input_axis(student.get_submodule(name))
        assert axis is not None
        want, have = (
            net.get_parameter(f"{own}.weight").shape[axis]
            for net, own in ((student, name), (teacher, plan.source(name)))
        )
        heads, wanted = head_count(teacher, space), head_count(student, own_space)
        if want < have and (not heads or not wanted or have // heads == want // wanted):
            units[space] = _best(scores[space], wanted or want)
    return units


def _best(scores: Tensor, count: int) -> list[int]:
    return sorted(scores.topk(count).indices.tolist())


def _weight_scores(net: Sam3Model) -> dict[str, Tensor]:
    """By space: for each head or hidden channel the norm of what makes it times the norm of what reads it."""
    made: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        axis = input_axis(module)
        if axis is None or name.endswith(("q_proj", "k_proj")) or name.startswith("geometry_encoder."):
            continue
        for side, own_axis in ((made, 1 - axis), (read, axis)):
            space = space_of(f"{name}.weight", own_axis)
            if space is not None and space not in TOWERS:
                weight = net.get_parameter(f"{name}.weight").detach().float().movedim(own_axis, 0)
                squares = weight.unflatten(0, (head_count(net, space) or len(weight), -1)).square().flatten(1).sum(1)
                side[space] = side[space] + squares if space in side else squares
    return {space: (made[space] * read[space]).sqrt() for space in read}
