"""From all that a teacher says to what a student imitates, and from stored codes back to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam3dist.errors import NonFiniteError
from sam3dist.predictions import instance_scores
from sam3dist.types import CodedAnswers, SegOutputs, TeacherAnswers

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillationConfig

CONFIDENT = 0.3
"""Least sigmoid(query) * sigmoid(presence) of a teacher's query worth imitating; the threshold of transformers."""
MOST = 32
"""Most queries imitated per prompt."""
MASK_LIMIT = 8.0
"""A teacher's mask and semantic logits beyond this count as this, a probability of 0.9997: how sure it is beyond that
teaches nothing about where a thing ends, and takes most of the bytes that storing logits would cost."""
MASK_CODES = 128
"""Values a stored mask logit can have. They lie asinh-spaced, a two-hundredth apart at 0, where that moves an edge, and
three quarters apart at MASK_LIMIT."""
MASK_KNEE = 0.05
"""The logit around which the spacing turns from even to growing."""
_DENSITY = MASK_CODES / 2 / math.asinh(MASK_LIMIT / MASK_KNEE)


def imitated_features(distillation: DistillationConfig) -> tuple[str, ...]:
    """The features of its teacher that a run imitates."""
    return distillation.features if distillation.gamma > 0 else ()


def imitable(outputs: SegOutputs, features: tuple[str, ...] = (), mask_limit: float = MASK_LIMIT) -> TeacherAnswers:
    """The answers of a teacher as a student imitates them, with these of its features, as constants.

    Raises NonFiniteError that names the teacher and its first answer with a NaN or an infinite value.
    """
    _require_finite(outputs, features)
    scores, order = instance_scores(outputs).detach().sort(dim=1, descending=True, stable=True)
    confident = scores >= CONFIDENT
    kept = confident[:, :MOST]
    prompt, rank = kept.nonzero(as_tuple=True)
    query = order[prompt, rank]
    return TeacherAnswers(
        query_logits=outputs.query_logits.detach().float().gather(1, order),
        background=~confident,
        presence_logits=outputs.presence_logits.detach().float(),
        semantic_logits=outputs.semantic_logits.detach().float().clamp(-mask_limit, mask_limit),
        counts=tuple(kept.sum(1).tolist()),
        boxes=outputs.boxes.detach().float()[prompt, query],
        mask_logits=outputs.mask_logits.detach()[prompt, query].float().clamp(-mask_limit, mask_limit),
        features={name: outputs.features[name].detach() for name in features},
    )


def decoded(coded: CodedAnswers, features: tuple[str, ...] = ()) -> TeacherAnswers:
    """The stored answers as `imitable` gave them, but for what the codes are wrong by; on the device of the codes."""
    maps = mask_logits(unfolded(coded.codes, coded.windows, coded.map_size))
    return TeacherAnswers(
        query_logits=coded.query_logits,
        background=coded.background,
        presence_logits=coded.presence_logits,
        semantic_logits=maps[: len(coded.counts)],
        counts=coded.counts,
        boxes=coded.boxes,
        mask_logits=maps[len(coded.counts) :],
        features={name: coded.features[name].codes * coded.features[name].scales[..., None, None] for name in features},
    )


def mask_codes(logits: Tensor) -> Tensor:
    """The stored value nearest to each logit: uint8 in 0..127, from 64 on for logits of 0 and more."""
    half = MASK_CODES // 2
    return (torch.asinh(logits.float() / MASK_KNEE) * _DENSITY).floor().clamp(-half, half - 1).add(half).to(torch.uint8)


def mask_logits(codes: Tensor) -> Tensor:
    """What the codes stand for: float32, of the same sign as what they were made of."""
    meanings = MASK_KNEE * torch.sinh((torch.arange(MASK_CODES, device=codes.device) - (MASK_CODES - 1) / 2) / _DENSITY)
    return meanings.index_select(0, codes.flatten().int()).view(codes.shape)


def unfolded(codes: Tensor, windows: Tensor, size: tuple[int, int]) -> Tensor:
    """The maps [N, h, w] of which only windows [N, 4] (top, left, rows, columns) are given, and 0 around them.

    codes [T] are the cells of all windows, one after the other, row by row.
    """
    height, width = size
    top, left, rows, columns = windows.long().unbind(1)
    cells = rows * columns
    numbers = torch.arange(len(windows), device=codes.device)
    # Given its size, the device need not be waited for.
    window = torch.repeat_interleave(numbers, cells, output_size=len(codes))
    cell = torch.arange(len(codes), device=codes.device) - (cells.cumsum(0) - cells)[window]
    row = cell // columns[window]
    column = cell - row * columns[window]
    maps = codes.new_zeros(len(windows) * height * width)
    maps[(window * height + top[window] + row) * width + left[window] + column] = codes
    return maps.view(len(windows), height, width)


def _require_finite(outputs: SegOutputs, features: tuple[str, ...]) -> None:
    """Waits for the device once, for all answers together."""
    names = ("query_logits", "boxes", "presence_logits", "semantic_logits", "mask_logits")
    values = {name: getattr(outputs, name) for name in names}
    values |= {f"features.{name}": outputs.features[name] for name in features}
    # A sum is finite only if all of its terms are; far cheaper in memory than isfinite on every mask.
    finite = torch.stack([value.detach().sum(dtype=torch.float32) for value in values.values()]).isfinite().tolist()
    for name, good in zip(values, finite, strict=True):
        if not good:
            raise NonFiniteError(
                f"The teacher's {name} are not finite: use teacher.precision=fp32, or check teacher.source."
            )
