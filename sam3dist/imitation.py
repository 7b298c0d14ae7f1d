"""What a teacher adds to the labels: its answers (distillation) and its features.

Each distillation term has the weight of its counterpart in the task loss, with KL_SCALE where the counterpart is a
cross entropy. Only the last decoder layer imitates.
P prompts, Q queries, M matched pairs, h x w mask cells, g x g feature cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3dist.boxes import iou_and_giou, to_centres
from sam3dist.matching import match
from sam3dist.task import MATCHED_WEIGHT, QUERIES
from sam3dist.terms import BCE_PER_FOCAL, bernoulli_kl, rank_means, soft_dice_loss
from sam3dist.types import SegOutputs, TeacherAnswers

if TYPE_CHECKING:
    from sam3dist.config.distill import TaskWeights

KL_SCALE = 0.5
"""At temperature 2, a sure teacher then pulls an undecided student as hard as a label does with cross entropy."""
FEATURE_SCALE = 10.0
"""Brings the features of an untrained student, 10, near its task loss, some 50 to 100, at gamma = 1."""


def imitation_loss(
    student: SegOutputs, teacher: TeacherAnswers, temperature: float, weights: TaskWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The divergence of the student's answers from the teacher's, and its unweighted pieces by name.

    Queries carry no order, so the teacher's confident ones are assigned to the student's as instances are. Each pair
    is compared in class, box (L1 and GIoU: a box has no temperature) and mask; the student's other queries are held
    to the mean of what the teacher says of background. Presence and semantic maps are compared for every prompt,
    negatives included. The query loss leaves out prompts in which the teacher finds nothing, as the task loss does:
    presence answers for those. Numbers of queries and mask sides may differ.
    """
    prompts = student.query_logits.shape[0]
    logits, boxes = student.query_logits.float(), student.boxes.float()
    matches = match(logits, boxes, teacher.boxes, teacher.counts)
    prompt, query, target = matches
    counts = torch.tensor(teacher.counts, device=logits.device)
    rank = target - (counts.cumsum(0) - counts)[prompt]  # of the teacher's query among those of its prompt
    per_prompt, per_pair = rank_means(logits.device, prompts, len(prompt))

    pairs = bernoulli_kl(logits[prompt, query], teacher.query_logits[prompt, rank], temperature)
    others = background_kl(logits, teacher.query_logits, teacher.background, temperature)
    others = (others * (counts > 0)[:, None]).index_put((prompt, query), torch.zeros_like(pairs))
    classes = (MATCHED_WEIGHT * pairs.sum() + others.sum()) / (QUERIES * per_prompt)
    presence = bernoulli_kl(student.presence_logits.float(), teacher.presence_logits, temperature)
    presence = 0.5 * presence.sum() / per_prompt
    found, wanted = boxes[prompt, query], teacher.boxes[target]
    l1 = (to_centres(found) - to_centres(wanted)).abs().sum() / per_pair
    giou = (1 - iou_and_giou(found, wanted)[1]).sum() / per_pair

    size = student.mask_logits.shape[-2:]
    masks = student.mask_logits[prompt, query].float()
    taught = resize_logits(teacher.mask_logits[target], size)
    mask = bernoulli_kl(masks, taught, temperature).mean((1, 2)).sum() / per_pair
    dice = soft_dice_loss(masks, taught).sum() / per_pair
    maps = student.semantic_logits.float()
    taught_maps = resize_logits(teacher.semantic_logits, size)
    semantic = bernoulli_kl(maps, taught_maps, temperature).mean((1, 2)).sum() / per_prompt
    semantic_dice = soft_dice_loss(maps, taught_maps).sum() / per_prompt

    parts = {
        "distillation/queries": classes,
        "distillation/presence": presence,
        "distillation/box_l1": l1,
        "distillation/box_giou": giou,
        "distillation/masks": mask,
        "distillation/dice": dice,
        "distillation/semantic": semantic,
        "distillation/semantic_dice": semantic_dice,
    }
    total = (
        KL_SCALE * (weights.classification * classes + weights.presence * presence)
        + KL_SCALE * BCE_PER_FOCAL * (weights.mask * mask + weights.semantic * semantic)
        + weights.box_l1 * l1
        + weights.box_giou * giou
        + weights.dice * dice
        + weights.semantic_dice * semantic_dice
    )
    return total, parts


def background_kl(logits: Tensor, teacher: Tensor, background: Tensor, temperature: float) -> Tensor:
    """KL of each student query [P, Q] towards the teacher's background queries of its prompt, taken together.

    teacher [P, Qt] logits, background [P, Qt] bool. The mean probability is what minimises the sum of the single
    divergences. Squared distance to it modulates the loss, as focal loss does, so that many queries that are nearly
    right do not outweigh few that are wrong. 0 where the teacher has no background query.
    """
    count = background.sum(1, keepdim=True)
    softened = (teacher / temperature).sigmoid()
    mean = (softened * background).sum(1, keepdim=True) / count.clamp(min=1)
    aim = temperature * mean.clamp(1e-6, 1 - 1e-6).logit()
    distance = (logits.sigmoid() - aim.sigmoid()) ** 2
    return bernoulli_kl(logits, aim, temperature) * distance * (count > 0)


def feature_loss(
    student: dict[str, Tensor], teacher: dict[str, Tensor], names: tuple[str, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """FEATURE_SCALE times the mean share of the teacher's features left unexplained, and the share of each by name.

    Features [B or P, C, g, g] in the teacher's width; the student's are interpolated to its grid. A share is the mean
    squared error over the teacher's variance about its channel means: 0 is perfect, 1 is knowing the means
    alone. So gamma means the same for every teacher.
    """
    parts = {}
    for name in names:
        taught, found = teacher[name].float(), student[name].float()
        if found.shape[-2:] != taught.shape[-2:]:
            found = F.interpolate(found, size=taught.shape[-2:], mode="bilinear", align_corners=False)
        spread = (taught - taught.mean((0, 2, 3), keepdim=True)).square().mean()
        parts[f"feature/{name}"] = F.mse_loss(found, taught) / spread.clamp(min=1e-6)
    return FEATURE_SCALE * torch.stack(list(parts.values())).mean(), parts


def resize_logits(logits: Tensor, size: torch.Size) -> Tensor:
    """Maps [M, h, w] in another size: averaged over areas where they shrink, interpolated where they grow."""
    if logits.shape[-2:] == size:
        return logits
    if logits.shape[-1] > size[-1]:
        return F.interpolate(logits[None], size=size, mode="area")[0]
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
