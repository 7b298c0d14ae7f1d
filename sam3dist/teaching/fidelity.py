"""How far stored answers are from the teacher's own: measured while they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3dist.answers import decoded, imitable
from sam3dist.teaching.codec import decode_answer, stack_answers
from sam3dist.types import SegOutputs, TeacherAnswers

FINER = 4
"""Masks are compared in cells this much finer: between cells, the value of a logit counts, not only its sign."""
MOST_MASKS = 64
"""Masks of a batch that are compared, the first."""


@dataclass(frozen=True)
class Fidelity:
    """Sums over the masks and scores that were compared."""

    masks: int = 0
    mask_iou: float = 0.0
    least_mask_iou: float = 1.0
    scores: int = 0
    score_kl: float = 0.0
    greatest_score_kl: float = 0.0

    def plus(self, other: Fidelity) -> Fidelity:
        return Fidelity(
            self.masks + other.masks,
            self.mask_iou + other.mask_iou,
            min(self.least_mask_iou, other.least_mask_iou),
            self.scores + other.scores,
            self.score_kl + other.score_kl,
            max(self.greatest_score_kl, other.greatest_score_kl),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def means(self) -> dict[str, float | None]:
        """What reports hold: the mean IoU of decoded masks with the raw ones, the mean KL of scores, and the worst."""
        return {
            "mask_iou": self.mask_iou / self.masks if self.masks else None,
            "least_mask_iou": self.least_mask_iou if self.masks else None,
            "score_kl": self.score_kl / self.scores if self.scores else None,
            "greatest_score_kl": self.greatest_score_kl if self.scores else None,
        }


def fidelity(outputs: SegOutputs, stored: Sequence[bytes]) -> Fidelity:
    """What storing did to the answers of one batch: to binary masks, and to the scores of all queries."""
    raw = imitable(outputs, mask_limit=math.inf)
    found = decoded(stack_answers([decode_answer(data) for data in stored], {}))
    ious = mask_ious(raw.mask_logits[:MOST_MASKS].cpu(), found.mask_logits[:MOST_MASKS])
    said, kept = _scores(raw).cpu(), _scores(found)
    kl = torch.special.xlogy(said, said / kept) + torch.special.xlogy(1 - said, (1 - said) / (1 - kept))
    return Fidelity(
        len(ious),
        float(ious.sum()),
        float(ious.min()) if len(ious) else 1.0,
        kl.numel(),
        float(kl.sum()),
        float(kl.max()),
    )


def mask_ious(raw: Tensor, found: Tensor) -> Tensor:
    """IoU [M] of masks [M, h, w] above 0 in finer cells; 1 where both are empty."""
    if len(raw) == 0:
        return torch.zeros(0)
    one, other = (
        F.interpolate(logits[None], scale_factor=FINER, mode="bilinear", align_corners=False)[0] > 0
        for logits in (raw, found)
    )
    union = (one | other).sum((1, 2))
    return torch.where(union > 0, (one & other).sum((1, 2)) / union.clamp(min=1), 1.0)


def _scores(answers: TeacherAnswers) -> Tensor:
    """sigmoid(query) * sigmoid(presence) of every query, away from 0 and 1 by 1e-9: [P, Q] float64."""
    scores = answers.query_logits.double().sigmoid() * answers.presence_logits.double().sigmoid()[:, None]
    return scores.clamp(1e-9, 1 - 1e-9)
