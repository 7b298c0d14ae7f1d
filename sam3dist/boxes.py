"""Boxes as corners xyxy in 0..1. Every function broadcasts over the leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-9
"""Areas below this divide as if they were this: a 30,000th of the side, squared."""


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union in 0..1, and its generalised form in -1..1.

    Boxes [..., 4] against [..., 4]. GIoU subtracts the share of the enclosing box that neither covers, so that
    boxes apart still attract each other (Rezatofighi et al. 2019). A box of no area has IoU 0.
    """
    overlap = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(0)
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    intersection, enclosing = overlap[..., 0] * overlap[..., 1], hull[..., 0] * hull[..., 1]
    union = area(first) + area(second) - intersection
    iou = intersection / union.clamp(SMALLEST)
    return iou, iou - (enclosing - union) / enclosing.clamp(SMALLEST)


def to_centres(boxes: Tensor) -> Tensor:
    """The same boxes as centre x, centre y, width, height."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Width times height; 0 for a box whose corners are swapped."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(0)
    # Not prod(): its backward counts zeros on the host.
    return sides[..., 0] * sides[..., 1]


def extents(masks: Tensor) -> Tensor:
    """The box [N, 4] around each mask [N, h, w] bool, in shares of its sides; zeros for an empty one."""
    height, width = masks.shape[-2:]
    sides = []
    for occupied, cells in ((masks.any(1), width), (masks.any(2), height)):
        places = torch.arange(cells, device=masks.device)
        first = torch.where(occupied, places, cells).amin(1)
        beyond = torch.where(occupied, places + 1, 0).amax(1)
        sides.append(torch.stack([first.clamp(max=beyond), beyond], dim=1) / cells)
    return torch.stack(sides, dim=2).flatten(1)
