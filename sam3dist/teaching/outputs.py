"""What teachers of other kinds say, as the SegOutputs of one that finds instances for phrases.

P prompts, Q queries, N instances of all prompts, h x w mask cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sam3dist.answers import MASK_LIMIT
from sam3dist.boxes import extents
from sam3dist.types import SegOutputs

SURE = 8.0
"""The logit of a certainty: probability 0.9997."""


def semantic_outputs(logits: Tensor, presence: Tensor) -> SegOutputs:
    """The answers of a teacher of semantic maps: one query for each prompt, which covers all that it names.

    logits: [P, h, w], above 0 where the phrase applies. presence: [P] logits of whether it names anything at all;
    where that is below 0, nothing is marked.
    """
    logits = logits.float()
    present = presence > 0
    maps = torch.where(present[:, None, None], logits, -MASK_LIMIT)
    return SegOutputs(
        mask_logits=maps[:, None],
        query_logits=torch.where(present, SURE, -SURE)[:, None],
        boxes=extents(maps > 0)[:, None],
        presence_logits=presence.float(),
        semantic_logits=maps,
    )


def instance_outputs(
    masks: Tensor, boxes: Tensor, scores: Tensor, counts: Sequence[int], presence: Tensor
) -> SegOutputs:
    """The answers of a teacher of instances: a query for each, and surely background up to the same number for all.

    masks: [N, h, w] logits, prompt after prompt, `counts[p]` of each. boxes: [N, 4] xyxy in 0..1. scores: [N]
    logits. presence: [P] logits. Every prompt has at least one query of background, so that a student learns of each
    that there is nothing else to find. The semantic map is the greatest of the instances' logits.
    """
    # Where each instance goes, among P rows of Q queries.
    number = torch.tensor(counts, device=masks.device)
    prompt = torch.arange(len(counts), device=masks.device).repeat_interleave(number)
    rank = torch.arange(len(masks), device=masks.device) - (number.cumsum(0) - number)[prompt]
    queries = max(counts, default=0) + 1

    def placed(values: Tensor, otherwise: float) -> Tensor:
        rows = values.new_full((len(counts), queries, *values.shape[1:]), otherwise)
        rows[prompt, rank] = values
        return rows

    mask_logits = placed(masks.float(), -MASK_LIMIT)
    return SegOutputs(
        mask_logits=mask_logits,
        query_logits=placed(scores.float(), -SURE),
        boxes=placed(boxes.float(), 0.0),
        presence_logits=presence.float(),
        semantic_logits=mask_logits.amax(1),
    )
