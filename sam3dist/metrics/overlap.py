"""The kept masks of one prompt on its truth, at the resolution of the original image.

K kept queries, N instances, h, w mask cells, H, W pixels of the original image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam3dist.data.masks import decode_rle, rle_area, rle_box
from sam3dist.predictions import image_size, upsampled
from sam3dist.types import PromptBatch, Rle


@dataclass(frozen=True)
class Overlap:
    """Pixels outside the crowd region, and what single masks have in common."""

    both: int
    predicted: int
    truth: int
    instance_ious: np.ndarray  # [K, N] float64 of kept masks and instances; the crowd region is not taken out


def compare(logits: Tensor, batch: PromptBatch, prompt: int) -> Overlap:
    """The overlap of the kept mask logits [K, h, w] of one prompt with its truth."""
    instances, crowd = batch.masks[prompt], batch.ignore[prompt]
    size = image_size(batch, prompt)
    assert all((rle.height, rle.width) == size for rle in instances), "masks are of another size than their image"
    if len(logits) == 0 and len(instances) == 0:
        return Overlap(0, 0, 0, np.zeros((0, 0)))
    truths = [_decoded(rle, logits.device) for rle in instances]
    truth = torch.zeros(size, dtype=torch.bool, device=logits.device)
    for mask in truths:
        truth |= mask
    predicted = torch.zeros_like(truth)
    ious: list[np.ndarray] = []
    for part in upsampled(logits, size):
        predicted |= part.amax(dim=0) > 0
        ious.append(_ious(part > 0, truths, instances) if instances else np.zeros((len(part), 0)))
    if crowd is not None:
        counted = ~_decoded(crowd, logits.device)
        truth &= counted
        predicted &= counted
    both, found, there = torch.stack([(truth & predicted).sum(), predicted.sum(), truth.sum()]).tolist()
    return Overlap(both, found, there, np.concatenate(ious) if ious else np.zeros((0, len(instances))))


def _ious(masks: Tensor, truths: list[Tensor], instances: tuple[Rle, ...]) -> np.ndarray:
    """IoU [k, N] of masks [k, H, W] with each instance, given decoded and as run lengths."""
    areas = masks.flatten(1).count_nonzero(dim=1)
    shared = torch.zeros(len(masks), len(truths), dtype=torch.int64, device=masks.device)
    for column, (truth, rle) in enumerate(zip(truths, instances, strict=True)):
        left, top, right, bottom = rle_box(rle)  # instances are small: outside of their boxes there is nothing to share
        crop = masks[:, top:bottom, left:right] & truth[top:bottom, left:right]
        shared[:, column] = crop.flatten(1).count_nonzero(dim=1)
    own = torch.tensor([rle_area(rle) for rle in instances], device=masks.device)
    union = (areas[:, None] + own - shared).clamp(min=1)
    return shared.cpu().numpy() / union.cpu().numpy()


def _decoded(rle: Rle, device: torch.device) -> Tensor:
    return torch.from_numpy(decode_rle(rle)).to(device)
