"""Which query answers for which instance: the cheapest one-to-one assignment, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sam3dist.boxes import iou_and_giou, to_centres
from sam3dist.errors import NonFiniteError

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
"""As SAM3's BinaryHungarianMatcherV2; masks cost nothing there."""
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


class Matches(NamedTuple):
    """M pairs, ordered by prompt: int64 [M] each, on the device of the queries."""

    prompt: Tensor
    query: Tensor
    target: Tensor  # into all targets of the batch


@torch.no_grad()
def match(query_logits: Tensor, boxes: Tensor, target_boxes: Tensor, counts: Sequence[int]) -> Matches:
    """The pairs of queries and targets with the least total cost in each prompt.

    query_logits [P, Q], boxes [P, Q, 4], target_boxes [N, 4] ordered by prompt, counts P numbers that add up to N.
    A prompt with n targets gets min(n, Q) pairs. Costs reach the host in one transfer. Raises NonFiniteError where a
    prediction is NaN or infinite.
    """
    assert len(counts) == query_logits.shape[0]
    assert sum(counts) == target_boxes.shape[0]
    prompt_of_target = torch.repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    table = matching_cost(query_logits, boxes, target_boxes, prompt_of_target.to(query_logits.device)).cpu().numpy()
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        prompt = int(prompt_of_target[np.flatnonzero(~finite)[0]])
        raise NonFiniteError(
            f"The query logits or boxes predicted for prompt {prompt} of the batch are NaN or infinite, so they match "
            "nothing: lower optim.learning_rate or optim.clip_grad_norm, or use strategy.precision=fp32."
        )
    pairs = [np.zeros((3, 0), dtype=np.int64)]
    for prompt, (start, count) in enumerate(zip(np.cumsum([0, *counts]), counts, strict=False)):
        if count:
            chosen, queries = linear_sum_assignment(table[start : start + count])
            pairs.append(np.stack([np.full_like(chosen, prompt), queries, start + chosen]))
    return Matches(*torch.from_numpy(np.concatenate(pairs, axis=1)).to(query_logits.device, non_blocking=True))


def matching_cost(query_logits: Tensor, boxes: Tensor, target_boxes: Tensor, prompt_of_target: Tensor) -> Tensor:
    """Cost [N, Q] of giving target n to query q of its prompt: focal class 2, L1 of centres and sizes 5, GIoU 2."""
    logits, predicted = query_logits.float()[prompt_of_target], boxes.float()[prompt_of_target]
    wanted = target_boxes.float()[:, None]
    p = logits.sigmoid()
    positive = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * F.softplus(-logits)
    negative = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * F.softplus(logits)
    distance = (to_centres(predicted) - to_centres(wanted)).abs().sum(-1)
    _, giou = iou_and_giou(predicted, wanted)
    return CLASS_COST * (positive - negative) + L1_COST * distance - GIOU_COST * giou
