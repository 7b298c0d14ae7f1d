"""Overlap of regions, from pixel counts and from run lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam3dist.types import Rle


def iou(intersection: float, predicted: float, truth: float) -> float:
    """Pixels in both over pixels in either; 1 when both regions are empty, so 0 when exactly one is."""
    union = predicted + truth - intersection
    return intersection / union if union else 1.0


def dice(intersection: float, predicted: float, truth: float) -> float:
    """Twice the pixels in both over the sum of the two areas; 1 when both regions are empty."""
    total = predicted + truth
    return 2 * intersection / total if total else 1.0


def pairwise_iou(found: Sequence[Rle], truths: Sequence[Rle]) -> np.ndarray:
    """IoU [D, G] float64 of every found mask with every true one, without decoding any; 0 when both are empty.

    A run of ones [start, stop) holds C(stop) - C(start) pixels of a mask whose first x pixels hold C(x) ones, and
    C is linear between the ends of that mask's runs.
    """
    overlaps = np.zeros((len(found), len(truths)))
    if overlaps.size == 0:
        return overlaps
    runs = [_runs(rle) for rle in found]
    start, stop = (np.concatenate(ends) for ends in zip(*runs, strict=True))
    # reduceat would give an empty mask the first run of the next one, so each mask ends with a run of nothing.
    offsets = np.cumsum([0, *(len(starts) for starts, _ in runs)])[:-1]
    areas = np.add.reduceat(stop - start, offsets)
    for column, rle in enumerate(truths):
        assert (rle.height, rle.width) == (found[0].height, found[0].width), "masks of different images"
        ends = np.cumsum(rle.counts, dtype=np.int64)
        ones = np.cumsum(np.where(np.arange(len(ends)) % 2, rle.counts, 0), dtype=np.int64)
        inside = np.interp(stop, ends, ones) - np.interp(start, ends, ones)
        shared = np.add.reduceat(inside, offsets)
        union = areas + ones[-1] - shared
        overlaps[:, column] = np.divide(shared, union, out=np.zeros(len(found)), where=union > 0)
    return overlaps


def _runs(rle: Rle) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop of the runs of ones in pixels from the top left, down the columns, and one run of nothing."""
    ends = np.append(np.cumsum(rle.counts, dtype=np.int64), 0)
    stops = np.append(ends[1:-1:2], 0)
    return np.append(ends[:-1:2][: len(stops) - 1], 0), stops
