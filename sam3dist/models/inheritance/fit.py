"""How a student best reads what is left: each linear map guesses what the teacher's read from what the student's will.

Where channels are left out, where a stream is turned, and where layers before are missing, a linear map of the student
reads u instead of the teacher's x. The least-squares guess x = A u + c makes of the teacher's W x + b the student's
(W A) u + (W c + b): what was lost is made up for as far as it depends linearly on what stays. That is the
reconstruction of ThiNet (Luo et al. 2017) and SliceGPT's bases in one formula, and with nothing lost it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model

from sam3dist.models.inheritance.absorb import absorbed_layers
from sam3dist.models.inheritance.bases import centred
from sam3dist.models.inheritance.observe import Watch, channels_last, frozen
from sam3dist.models.inheritance.plan import Plan, kept_entries
from sam3dist.models.inheritance.regression import Guess, Pairs
from sam3dist.models.inheritance.spaces import (
    PATCH_NORM,
    TOWERS,
    input_axis,
    space_of,
    stack_layers,
    stream_norms,
    towers,
)
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.types import PromptBatch

NECK = "vision_encoder.neck"
UNUSED = ("geometry_encoder.", "text_encoder.text_projection.")  # students have the smallest there can be


@dataclass
class Reading:
    """How the linear maps of a student come by what the teacher's read."""

    guesses: dict[str, Guess] = field(default_factory=dict)
    """By the place where the teacher's map reads (`site`): x = A u + c, with u what the student's will read there."""
    added: dict[str, Guess] = field(default_factory=dict)
    """What the second matrix of an MLP is to add for layers that are missing behind it (`absorb`), by name."""
    presence: Tensor | None = None
    """The teacher's presence logits [P] of all batches it was asked about."""
    start: tuple[Tensor, Tensor] | None = None
    """Gain and bias of the LayerNorm that makes the stream of patches, where that stream has a basis."""


def site(module: str, space: str | None) -> str:
    """Where that is to be seen which a module of the teacher reads: itself, or what hands it the stream."""
    if space not in TOWERS:
        return module
    if module.startswith(NECK):
        return NECK
    if module == "text_projection":
        return f"{TOWERS['text']}final_layer_norm"
    parent = module.rsplit(".", 2)[0]
    return f"{parent}.layer_norm{2 if module.endswith('fc1') else 1}"


def planned_reading(plan: Plan, teacher: Sam3Model) -> Reading:
    """Reading by the plan alone: what is kept stands for itself, and what is not for nothing."""
    reading = Reading()
    for stream, basis in plan.bases.items():
        gain = plan.gains.get(stream, 1.0) * (len(basis) / basis.shape[1]) ** 0.5
        for name, of in stream_norms(teacher).items():
            if of == stream:
                norm = _norm(teacher, name)
                reading.guesses[name] = Guess(norm.weight.detach()[:, None] * basis * gain, norm.bias.detach().clone())
        if stream == "vision":
            norm = _norm(teacher, PATCH_NORM)
            # Of tokens in all directions with mean 0 and variance 1, as many as there are but one.
            squares = embedding_turn(norm, basis).square().sum() * len(basis) / (len(basis) - 1)
            gain = float(squares / basis.shape[1]) ** 0.5
            reading.guesses[NECK] = Guess(basis, torch.zeros_like(norm.bias))
            reading.start = torch.full_like(basis[0], gain), basis.T @ norm.bias.detach()
    return reading


def embedding_turn(norm: nn.LayerNorm, basis: Tensor) -> Tensor:
    """What makes the student's embeddings of the teacher's, [k, n]: the first LayerNorm's mean and gain come before
    the basis, since the student's can have them only in its own.
    """
    return centred(norm.weight.detach()[:, None] * basis).T


def fitted_reading(plan: Plan, student: Sam3Model, teacher: Segmenter, batches: Sequence[PromptBatch]) -> Reading:
    """Reading with guesses fitted to what the teacher reads in these batches; takes a forward pass or two."""
    net = teacher.net
    reading = planned_reading(plan, net)
    reading.added = absorbed_layers(plan, teacher, batches)
    pairs: dict[str, Pairs] = {}
    presence: list[Tensor] = []
    gaps: dict[str, Tensor | float] = {}  # of this batch, by stream: the teacher's in the basis, less the student's
    sites, streams = _changed_sites(plan, student, net), set(plan.bases) | _shallower(student, teacher.net)

    with frozen(net), torch.no_grad(), Watch(net) as watch:
        if "vision" in plan.bases:
            reading.start = _fitted_start(plan.bases["vision"], teacher, batches)

        def turned(stream: str, values: Tensor) -> Tensor:
            return values @ plan.bases[stream] if stream in plan.bases else values

        def start(before: Tensor, after: Tensor) -> None:
            assert reading.start is not None
            mine = _student_embeddings(_norm(net, PATCH_NORM), plan.bases["vision"], before)
            gaps["vision"] = turned("vision", after) - (mine * reading.start[0] + reading.start[1])

        def missing(stream: str) -> Callable[[Tensor, Tensor], None]:
            def look(before: Tensor, after: Tensor) -> None:
                gaps[stream] = gaps.get(stream, 0.0) + turned(stream, after - before)

            return look

        def absorbed(name: str, stream: str) -> Callable[[Tensor, Tensor], None]:
            guess = reading.added[name]

            def look(hidden: Tensor, _: Tensor) -> None:
                gaps[stream] = gaps.get(stream, 0.0) - turned(stream, hidden @ guess.matrix.T + guess.constant)

            return look

        def norm(name: str, stream: str) -> Callable[[Tensor, Tensor], None]:
            module = _norm(net, name)

            def look(before: Tensor, after: Tensor) -> None:
                mine = turned(stream, before) - gaps.get(stream, 0.0)
                gain, bias = (None, None) if stream in plan.bases else (module.weight, module.bias)
                mine = F.layer_norm(mine, mine.shape[-1:], gain, bias, module.eps)
                pairs.setdefault(name, Pairs()).add(watch.tokens(name, after), watch.tokens(name, mine))

            return look

        def neck(_: nn.Module, stream: Tensor) -> None:
            theirs = stream.movedim(1, -1)
            mine = turned("vision", theirs) - gaps.get("vision", 0.0)
            pairs.setdefault(NECK, Pairs()).add(theirs.flatten(0, -2), mine.flatten(0, -2))

        def kept(name: str, entries: list[int]) -> Callable[[nn.Module, Tensor], None]:
            def look(module: nn.Module, values: Tensor) -> None:
                tokens = watch.tokens(name, channels_last(module, values))
                pairs.setdefault(name, Pairs()).add(tokens, tokens[:, entries])

            return look

        if "vision" in plan.bases:
            watch.after(PATCH_NORM, start)
        for name, (stack, number) in stack_layers(net).items():
            if stack in streams and number not in plan.layers[stack]:
                watch.after(name, missing(stack))
            if stack in streams and f"{name}.mlp.fc2" in reading.added:
                watch.after(f"{name}.mlp.fc2", absorbed(f"{name}.mlp.fc2", stack))
        for name, stream in stream_norms(net).items():
            if stream in streams and plan.stays(name):
                watch.after(name, norm(name, stream))
        if "vision" in streams:
            watch.before(NECK, neck)
        for name, entries in sites.items():
            watch.before(name, kept(name, entries))
        for batch in batches:
            gaps.clear()
            presence.append(segment(teacher, batch).presence_logits)

    reading.presence = torch.cat(presence)
    for name, found in pairs.items():
        reading.guesses[name] = found.guess(reading.guesses.get(name) or _itself(sites.get(name), found))
    return reading


def _itself(entries: list[int] | None, pairs: Pairs) -> Guess:
    """The prior that what is kept stands for itself; None keeps everything."""
    nothing = pairs.nothing
    width = len(nothing.constant)
    everything = torch.eye(width).to(nothing.matrix)
    return Guess(everything if entries is None else everything[:, entries], nothing.constant)


def _changed_sites(plan: Plan, student: Sam3Model, teacher: Sam3Model) -> dict[str, list[int]]:
    """The teacher's linear maps of which the student reads fewer channels, and which; those of streams left out."""
    found = {}
    known = dict(teacher.named_modules())
    for name, module in student.named_modules():
        axis, source = input_axis(module), plan.source(name)
        if axis is None or type(known.get(source)) is not type(module) or f"{name}.".startswith(UNUSED):
            continue
        if space_of(f"{source}.weight", axis) in TOWERS:
            continue
        have = teacher.get_parameter(f"{source}.weight").shape[axis]
        entries = kept_entries(plan, f"{name}.weight", axis, student, teacher, have)
        if entries is not None and entries != list(range(have)):
            found[source] = entries
    return found


def _shallower(student: Sam3Model, teacher: Sam3Model) -> set[str]:
    """The towers that have fewer layers in the student and are no wider."""
    found = set()
    ours, theirs = (towers(net) for net in (student, teacher))
    for tower in ours.keys() & theirs:
        config, original = ours[tower].config, theirs[tower].config
        if config.num_hidden_layers < original.num_hidden_layers and config.hidden_size <= original.hidden_size:
            found.add(tower)
    return found


def _fitted_start(basis: Tensor, teacher: Segmenter, batches: Sequence[PromptBatch]) -> tuple[Tensor, Tensor]:
    """Gain and bias [k] with which the student's first LayerNorm comes nearest to the teacher's in the basis."""
    net = teacher.net
    norm = _norm(net, PATCH_NORM)
    sums: list[Tensor] = []
    count = 0
    for batch in batches:
        theirs = net.vision_encoder.backbone.embeddings(teacher.normalised(batch.images.to(teacher.device)))
        mine = _student_embeddings(norm, basis, theirs).flatten(0, 1).double()
        goal = (norm(theirs) @ basis).flatten(0, 1).double()
        parts = [mine.sum(0), goal.sum(0), mine.square().sum(0), (mine * goal).sum(0)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        count += len(mine)
    mean, goal_mean, squares, products = (part / count for part in sums)
    gain = (products - mean * goal_mean) / (squares - mean.square()).clamp_min(1e-12)
    return gain.float(), (goal_mean - gain * mean).float()


def _student_embeddings(norm: nn.LayerNorm, basis: Tensor, embeddings: Tensor) -> Tensor:
    """What the student's first LayerNorm makes of the patches before gain and bias."""
    mine = embeddings @ embedding_turn(norm, basis).T
    return F.layer_norm(mine, mine.shape[-1:], eps=norm.eps)


def _norm(net: Sam3Model, name: str) -> nn.LayerNorm:
    module = net.get_submodule(name)
    assert isinstance(module, nn.LayerNorm)
    return module
