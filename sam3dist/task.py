"""The task loss: SAM3's (`train/loss/loss_fns.py`) against the ground truth, over all decoder layers at once.

L decoder layers, P prompts, Q queries, N instances, h x w mask cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3dist.boxes import iou_and_giou, to_centres
from sam3dist.matching import Matches, match
from sam3dist.targets import Targets
from sam3dist.terms import BCE_PER_FOCAL, bce, dice_loss, focal_loss, rank_means
from sam3dist.types import LayerOutputs, SegOutputs

if TYPE_CHECKING:
    from sam3dist.config.distill import TaskWeights

QUERIES = 200
"""SAM3 averages the class loss over its 200 queries. Students with fewer keep the divisor, and so the balance."""
MATCHED_WEIGHT = 10.0


def task_loss(student: SegOutputs, targets: Targets, weights: TaskWeights) -> tuple[Tensor, dict[str, Tensor]]:
    """SAM3's loss against the ground truth, and its unweighted pieces by name.

    Class, presence and box terms apply to every decoder layer, each with an assignment of its own.
    """
    layers: tuple[LayerOutputs | SegOutputs, ...] = (*student.auxiliary, student)
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

    # Every layer has equally many pairs, and the last layer's come last.
    pairs = len(matches.prompt) // len(layers)
    prompt, query, target = (index[len(index) - pairs :] for index in matches)
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
