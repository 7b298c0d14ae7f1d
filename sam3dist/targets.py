"""Ground truth in the cells of a mask head, straight from run lengths: no mask is decoded at full resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam3dist.types import PromptBatch, Rle


@dataclass(frozen=True)
class Targets:
    """What a batch asks for, in h x w mask cells. N instances of all prompts, ordered by prompt."""

    boxes: Tensor  # [N, 4] float, xyxy in 0..1, the extent of each mask
    masks: Tensor  # [N, h, w] bool; every instance has at least one cell
    counts: tuple[int, ...]  # P numbers of instances, which add up to N
    semantic: Tensor  # [P, h, w] bool: any instance
    ignore: Tensor | None  # [P, h, w] bool: crowd cells that are no instance's; None where no prompt has a crowd
    present: Tensor  # [P] bool
    exhaustive: Tensor  # [P] bool

    @property
    def has_instances(self) -> Tensor:
        """[P] bool; differs from `present` where all that is present is a crowd."""
        return torch.tensor(self.counts, device=self.boxes.device) > 0


def make_targets(batch: PromptBatch, mask_size: tuple[int, int], device: torch.device | str) -> Targets:
    """The targets of `batch` for masks of (h, w) cells, on `device`.

    A cell belongs to an instance that covers at least half of it; an instance too small for that keeps the
    cell it covers most. Empty masks are left out.
    """
    height, width = mask_size
    semantic = np.zeros((len(batch.prompts), height, width), dtype=bool)
    ignore = np.zeros_like(semantic) if any(crowd is not None for crowd in batch.ignore) else None
    masks: list[np.ndarray] = []
    boxes: list[tuple[float, float, float, float]] = []
    counts: list[int] = []
    for prompt, (instances, crowd) in enumerate(zip(batch.masks, batch.ignore, strict=True)):
        before = len(masks)
        for instance in instances:
            strokes = _strokes(instance)
            if len(strokes[0]) == 0:
                continue
            masks.append(_cells(_coverage(strokes, instance, mask_size)))
            boxes.append(_box(strokes, instance))
            semantic[prompt] |= masks[-1]
        counts.append(len(masks) - before)
        if crowd is not None:
            assert ignore is not None
            ignore[prompt] = (coverage(crowd, mask_size) >= 0.5) & ~semantic[prompt]
    return Targets(
        boxes=torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4)).to(device),
        masks=torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, height, width)).to(device),
        counts=tuple(counts),
        semantic=torch.from_numpy(semantic).to(device),
        ignore=None if ignore is None else torch.from_numpy(ignore).to(device),
        present=batch.present.to(device),
        exhaustive=batch.exhaustive.to(device),
    )


def coverage(rle: Rle, mask_size: tuple[int, int]) -> np.ndarray:
    """The share of each cell that the mask covers: [h, w] float in 0..1.

    Cells need not hold a whole number of pixels, and may be smaller than one.
    """
    return _coverage(_strokes(rle), rle, mask_size)


def _strokes(rle: Rle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs of ones cut at column ends: column x, first row, row after the last; each [S], ordered by x."""
    ends = np.cumsum(rle.counts, dtype=np.int64)
    starts, stops = ends[0:-1:2], ends[1::2]
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    first = starts // rle.height
    columns = (stops - 1) // rle.height - first + 1  # of each run
    run = np.repeat(np.arange(len(starts)), columns)
    x = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns)
    top = np.maximum(starts[run] - x * rle.height, 0)
    bottom = np.minimum(stops[run] - x * rle.height, rle.height)
    return x, top, bottom


def _coverage(strokes: tuple[np.ndarray, np.ndarray, np.ndarray], rle: Rle, mask_size: tuple[int, int]) -> np.ndarray:
    """An integral image whose rows are cells already: summed over strokes, read off at the cells' left and right."""
    x, top, bottom = strokes
    height, width = mask_size
    rows = np.arange(height)
    scale = height / rle.height
    share = np.clip(bottom[:, None] * scale - rows, 0, 1) - np.clip(top[:, None] * scale - rows, 0, 1)
    integral = np.concatenate([np.zeros((1, height)), np.cumsum(share, axis=0)])
    edges = np.arange(width + 1) * (rle.width / width)
    column = np.minimum(edges.astype(np.int64), rle.width - 1)
    left, right = integral[np.searchsorted(x, column)], integral[np.searchsorted(x, column + 1)]
    at_edges = left + (edges - column)[:, None] * (right - left)
    return (np.diff(at_edges, axis=0) * (width / rle.width)).T


def _cells(covered: np.ndarray) -> np.ndarray:
    # The tolerance lets cells that are half covered count in spite of rounding.
    cells = covered >= 0.5 - 1e-9
    if not cells.any():
        cells.flat[covered.argmax()] = True
    return cells


def _box(strokes: tuple[np.ndarray, np.ndarray, np.ndarray], rle: Rle) -> tuple[float, float, float, float]:
    x, top, bottom = strokes
    return x[0] / rle.width, top.min() / rle.height, (x[-1] + 1) / rle.width, bottom.max() / rle.height
