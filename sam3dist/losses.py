"""loss = alpha * task + beta * distillation + gamma * feature.

The task loss is SAM3's (`train/loss/loss_fns.py`); `imitation.py` holds the two losses that need a teacher.
Logits may arrive in half precision: everything here is computed in float32. Numbers of prompts and of instances are
averaged over the ranks, so that N processes follow the same loss as one with the whole batch; hence every rank must
call `distillation_loss` equally often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3dist.boxes import iou_and_giou, to_centres
from sam3dist.matching import Matches, match
from sam3dist.targets import Targets, make_targets
from sam3dist.types import LossTerms, PromptBatch, SegOutputs

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillationConfig, TaskWeights

QUERIES = 200
"""SAM3 averages the class loss over its 200 queries. Students with fewer keep the divisor, and so the balance."""
MATCHED_WEIGHT = 10.0
BCE_PER_FOCAL = 3 / 16
"""What focal loss charges for an undecided background cell (0.75 * 0.5 ** 2) where BCE charges 1."""


def distillation_loss(
    student: SegOutputs, batch: PromptBatch, teacher: SegOutputs | None, config: DistillationConfig
) -> LossTerms:
    """The weighted sum and its three terms; without a teacher the last two are zero.

    A term whose weight is zero is not computed. Raises NonFiniteError where the student's predictions match nothing
    or the teacher's answers are not finite.
    """
    device = student.query_logits.device
    zero = torch.zeros((), device=device)
    task, parts = zero, {}
    # Losses lose too much in half precision: counts of cells pass 2048, where float16 stops counting.
    with torch.autocast(device.type, enabled=False):
        if config.alpha > 0 or teacher is None:
            targets = make_targets(batch, student.mask_logits.shape[-2:], device)
            task, parts = task_loss(student, targets, config.task)
    total = config.alpha * task
    return LossTerms(task, zero, zero, total, {name: value.detach() for name, value in parts.items()})


def task_loss(student: SegOutputs, targets: Targets, weights: TaskWeights) -> tuple[Tensor, dict[str, Tensor]]:
    """SAM3's loss against the ground truth, and its unweighted pieces by name.

    Class, presence and box terms apply to every decoder layer, each with an assignment of its own.
    """
    layers = (*student.auxiliary, student)
    prompts, instances = len(targets.counts), sum(targets.counts)
    logits = torch.cat([layer.query_logits for layer in layers]).float()
    boxes = torch.cat([layer.boxes for layer in layers]).float()
    presence = torch.stack([layer.presence_logits for layer in layers]).float()
    matches = match(logits, boxes, targets.boxes.repeat(len(layers), 1), targets.counts * len(layers))
    wanted = targets.boxes[matches.target % max(instances, 1)]
    found = boxes[matches.prompt, matches.query]
    per_prompt, per_instance, per_positive = rank_means(
        logits.device, prompts, instances, sum(count > 0 for count in targets.counts)
    )

    iou, giou = iou_and_giou(found, wanted)
    unmatched = _background(boxes, targets, len(layers))
    classes = class_loss(logits, matches, iou.detach(), unmatched).view(len(layers), -1).sum(1) / (QUERIES * per_prompt)
    # Half of BCE: SAM3's presence loss is a focal loss with alpha 0.5 and gamma 0.
    present = targets.present.float().expand_as(presence)
    presences = 0.5 * F.binary_cross_entropy_with_logits(presence, present, reduction="none").sum(1) / per_prompt
    by_layer = torch.zeros(2, len(layers), device=logits.device)
    distance = (to_centres(found) - to_centres(wanted)).abs().sum(-1)
    l1, overlap = by_layer.index_add(1, matches.prompt // prompts, torch.stack([distance, 1 - giou])) / per_instance
    detection = (
        weights.classification * classes
        + weights.presence * presences
        + weights.box_l1 * l1
        + weights.box_giou * overlap
    )

    last = matches.prompt >= (len(layers) - 1) * prompts
    prompt, query, target = (index[last] for index in matches)
    masks = student.mask_logits[prompt % prompts, query].float()
    truth = targets.masks[target % max(instances, 1)].float()
    kind = focal_loss(masks, truth, 0.25) if weights.mask_kind == "focal" else BCE_PER_FOCAL * bce(masks, truth)
    mask = kind.mean((1, 2)).sum() / per_instance
    dice = dice_loss(masks, truth).sum() / per_instance
    semantic, semantic_dice = semantic_losses(student.semantic_logits.float(), targets, per_positive)

    parts = {
        "task/class": classes[-1],
        "task/presence": presences[-1],
        "task/box_l1": l1[-1],
        "task/box_giou": overlap[-1],
        "task/mask": mask,
        "task/dice": dice,
        "task/semantic": semantic,
        "task/semantic_dice": semantic_dice,
    }
    if len(layers) > 1:
        parts["task/auxiliary"] = detection[:-1].sum()
    total = (
        detection[-1]
        + weights.auxiliary * detection[:-1].sum()
        + weights.mask * mask
        + weights.dice * dice
        + weights.semantic * semantic
        + weights.semantic_dice * semantic_dice
    )
    return total, parts


def class_loss(logits: Tensor, matches: Matches, iou: Tensor, unmatched: Tensor) -> Tensor:
    """Loss of each query, [P, Q]: BCE towards the quality of its box if matched, focal towards 0 if `unmatched`.

    The target of a matched query is p ** 0.25 * IoU ** 0.75, at least 0.01 (SAM3's IABCEMdetr), so that the score ranks
    boxes by how well they fit. unmatched [P, Q] bool: the queries that count as background unless matched.
    """
    chosen = logits[matches.prompt, matches.query]
    quality = (chosen.detach().sigmoid() ** 0.25 * iou**0.75).clamp(min=0.01)
    background = unmatched.index_put((matches.prompt, matches.query), torch.zeros((), dtype=torch.bool).to(unmatched))
    loss = F.softplus(logits) * logits.sigmoid() ** 2 * background
    return loss.index_put((matches.prompt, matches.query), MATCHED_WEIGHT * bce(chosen, quality), accumulate=True)


def semantic_losses(logits: Tensor, targets: Targets, per_positive: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and Dice loss of the union map [P, h, w], averaged over the prompts that have instances.

    Crowd cells count for nothing, and a prompt that is not exhaustively labelled tells no background.
    """
    known = (targets.has_instances & targets.exhaustive)[:, None, None].expand_as(logits).float()
    if targets.ignore is not None:
        known = known * ~targets.ignore
    truth = targets.semantic.float()
    cells = known.sum((1, 2)).clamp(min=1)
    focal = ((focal_loss(logits, truth, 0.6) * known).sum((1, 2)) / cells).sum() / per_positive
    dice = (dice_loss(logits, truth, known) * known.amax((1, 2))).sum() / per_positive
    return focal, dice


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of each element."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float = 2.0) -> Tensor:
    """Focal loss of each element (Lin et al. 2017): easy elements hardly count, ones weigh alpha, zeros 1 - alpha."""
    p = logits.sigmoid()
    wrong = p + target - 2 * p * target
    return (1 - alpha + (2 * alpha - 1) * target) * wrong**gamma * bce(logits, target)


def dice_loss(logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """1 - Dice of each mask [N, h, w], smoothed by one cell; cells where `known` is 0 are left out: [N]."""
    p = logits.sigmoid()
    if known is not None:
        p, target = p * known, target * known
    overlap = 2 * (p * target).sum((1, 2))
    return 1 - (overlap + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)


def rank_means(device: torch.device, *counts: float) -> Tensor:
    """The mean of each count over all ranks, at least 1, as a vector; a plain copy in a single process."""
    total = torch.tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total /= torch.distributed.get_world_size()
    return total.clamp(min=1)


def _background(boxes: Tensor, targets: Targets, layers: int) -> Tensor:
    """[L * P, Q] bool: queries that are wrong unless matched.

    Not those of negatives, whom the presence head teaches, nor of prompts that may have more instances than labelled,
    nor queries whose box lies mostly on a crowd.
    """
    judged = (targets.has_instances & targets.exhaustive)[:, None].expand(-1, boxes.shape[1]).repeat(layers, 1)
    if targets.ignore is None:
        return judged
    return judged & (_crowd_share(boxes.detach(), targets.ignore.float().repeat(layers, 1, 1)) <= 0.5)


def _crowd_share(boxes: Tensor, crowd: Tensor) -> Tensor:
    """The share of each box's area that crowd cells cover: boxes [P, Q, 4], crowd [P, h, w] -> [P, Q]."""
    left, top, right, bottom = boxes.unsqueeze(-1).unbind(-2)
    across, down = _overlap(left, right, crowd.shape[2]), _overlap(top, bottom, crowd.shape[1])
    covered = torch.einsum("pqh,phw,pqw->pq", down, crowd, across)
    return covered / ((right - left) * (bottom - top)).squeeze(-1).clamp(min=1e-6)


def _overlap(start: Tensor, stop: Tensor, cells: int) -> Tensor:
    """How much of 0..1 the interval shares with each of `cells` equal cells."""
    edges = torch.arange(cells, device=start.device) / cells
    return (torch.minimum(stop, edges + 1 / cells) - torch.maximum(start, edges)).clamp(0)
