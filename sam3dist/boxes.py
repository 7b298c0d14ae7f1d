"""Boxes as corners xyxy in 0..1. Every function broadcasts over the leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union in 0..1, and its generalised form in -1..1.

    Boxes [..., 4] against [..., 4]. GIoU subtracts the share of the enclosing box that neither covers, so that
    boxes apart still attract each other (Rezatofighi et al. 2019). A box of no area has IoU 0.
    """
    tiny = torch.finfo(first.dtype).tiny
    overlap = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(0)
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    intersection, enclosing = overlap.prod(-1), hull.clamp(0).prod(-1)
    union = _area(first) + _area(second) - intersection
    iou = intersection / union.clamp(tiny)
    return iou, iou - (enclosing - union) / enclosing.clamp(tiny)


def to_centres(boxes: Tensor) -> Tensor:
    """The same boxes as centre x, centre y, width, height."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(0).prod(-1)
