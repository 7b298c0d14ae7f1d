"""Answers as SAM3 gives them, made from true masks: for benchmarks where no SAM3 is at hand.

Masks of 288 x 288 cells and 200 queries are SAM3's own sizes. Mask logits rise by about one and a half per cell across
an outline and level off at 12, give or take noise that is smooth, and a little that is not: what a codec gets to pack.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from sam3dist.answers import MASK_LIMIT
from sam3dist.data.masks import resize_masks
from sam3dist.data.rows import Row
from sam3dist.types import Rle, TeacherAnswers

MASK_SIDE, QUERIES = 288, 200
SLOPE, SUREST = 1.5, 12.0
NOTHING = -15.0
"""Semantic logit where a phrase names nothing."""


def made_answers(row: Row, seed: int) -> TeacherAnswers:
    """What a teacher that finds the true masks of a row would say to its phrases, as a student imitates it."""
    random = torch.Generator().manual_seed(seed)
    found: dict[bytes, Tensor] = {}  # phrases share instances
    for instance in (instance for prompt in row.prompts for instance in prompt.instances):
        if instance.counts.tobytes() not in found:
            found[instance.counts.tobytes()] = made_logits([row.rle(instance.counts)], random)[0]
    masks = [[found[instance.counts.tobytes()] for instance in prompt.instances] for prompt in row.prompts]
    counts = tuple(len(each) for each in masks)
    queries = (torch.randn(len(counts), QUERIES, generator=random) - 6).sort(dim=1, descending=True).values
    for logits, count in zip(queries, counts, strict=True):
        logits[:count] = (torch.rand(count, generator=random) * 4).sort(descending=True).values
    nothing = noise(1, random)[0] + NOTHING
    boxes = [instance.box for prompt in row.prompts for instance in prompt.instances]
    return TeacherAnswers(
        query_logits=queries,
        background=torch.arange(QUERIES) >= torch.tensor(counts)[:, None],
        presence_logits=torch.tensor([6.0 if count else -6.0 for count in counts]),
        semantic_logits=limited([torch.stack([nothing, *each]).amax(0) for each in masks]),
        counts=counts,
        boxes=torch.tensor(boxes).reshape(-1, 4) / torch.tensor([row.width, row.height] * 2),
        mask_logits=limited([logits for each in masks for logits in each]),
    )


def made_logits(masks: Sequence[Rle], random: torch.Generator) -> Tensor:
    """Mask logits [N, 288, 288] of these masks, without the limit of stored ones."""
    inside = resize_masks(masks, MASK_SIDE, MASK_SIDE) >= 0.5
    distances = [distance_transform_edt(cells) - distance_transform_edt(~cells) for cells in inside]
    sure = SUREST * torch.tanh(torch.from_numpy(np.stack(distances)).float() * (SLOPE / SUREST))
    return sure + noise(len(masks), random)


def noise(count: int, random: torch.Generator) -> Tensor:
    """Noise [count, 288, 288] that is smooth over eight cells, and a tenth as much that is not."""
    coarse = torch.randn(count, 1, MASK_SIDE // 8, MASK_SIDE // 8, generator=random)
    smooth = F.interpolate(coarse, size=(MASK_SIDE, MASK_SIDE), mode="bicubic")[:, 0]
    return smooth + 0.1 * torch.randn(count, MASK_SIDE, MASK_SIDE, generator=random)


def limited(logits: list[Tensor]) -> Tensor:
    if not logits:
        return torch.zeros(0, MASK_SIDE, MASK_SIDE)
    return torch.stack(logits).clamp(-MASK_LIMIT, MASK_LIMIT)
