"""Binary masks as run lengths: numpy only, so that machines which train need no pycocotools.

The runs go down the columns and start with zeros, as in COCO.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sam3dist.types import Rle

Window = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image, in its pixels."""


def encode_mask(mask: np.ndarray) -> Rle:
    """The run lengths of a mask [H, W]; what is not zero counts as one."""
    assert mask.ndim == 2, mask.shape
    height, width = mask.shape
    flat = np.asfortranarray(mask != 0).ravel(order="F")
    if flat.size == 0:
        return Rle(height, width, np.zeros(1, np.uint32))
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    counts = np.diff(edges)
    if flat[0]:  # runs start with zeros
        counts = np.concatenate(([0], counts))
    return Rle(height, width, counts.astype(np.uint32))


def decode_rle(rle: Rle) -> np.ndarray:
    """The mask [H, W] bool of its run lengths."""
    values = np.zeros(len(rle.counts), dtype=bool)
    values[1::2] = True
    return np.repeat(values, rle.counts).reshape(rle.width, rle.height).T


def rle_area(rle: Rle) -> int:
    """Number of pixels set."""
    return int(rle.counts[1::2].sum(dtype=np.int64))


def rle_box(rle: Rle) -> tuple[int, int, int, int]:
    """The tight pixel box (left, top, right, bottom) of a mask, right and bottom excluded; zeros when it is empty."""
    ends = np.cumsum(rle.counts, dtype=np.int64)
    starts, ends = ends[0:-1:2], ends[1::2]
    starts, ends = starts[: len(ends)], ends[: len(starts)]
    filled = ends > starts
    if not filled.any():
        return 0, 0, 0, 0
    first, last = starts[filled], ends[filled] - 1
    left, right = int(first[0]) // rle.height, int(last[-1]) // rle.height + 1
    # A run that reaches into another column covers the bottom of one and the top of the next.
    if (first // rle.height != last // rle.height).any():
        return left, 0, right, rle.height
    return left, int((first % rle.height).min()), right, int((last % rle.height).max()) + 1


def crop_rle(rle: Rle, window: Window) -> Rle:
    """The part of the mask inside the window."""
    top, left, height, width = window
    return encode_mask(decode_rle(rle)[top : top + height, left : left + width])


def flip_rle(rle: Rle) -> Rle:
    """The mask mirrored left to right."""
    return encode_mask(decode_rle(rle)[:, ::-1])


def resize_masks(masks: Sequence[Rle], height: int, width: int) -> np.ndarray:
    """The share of each new cell that a mask covers, [N, height, width] float32 in 0..1.

    Exact area averages, so that the resized mask keeps its relative area; compare with 0.5 for a binary mask.
    """
    resized = np.zeros((len(masks), height, width), dtype=np.float32)
    for cells, rle in zip(resized, masks, strict=True):
        rows = _area_average(decode_rle(rle).astype(np.float32), height)
        cells[:] = _area_average(np.ascontiguousarray(rows.T), width).T
    return resized


def counts_from_string(text: str | bytes) -> np.ndarray:
    """The run lengths [runs] int64 packed in COCO's compressed string.

    Raises ValueError where the string is cut short or holds a foreign character: pycocotools would read past
    the end. Format: five bits and a continuation bit per character from "0" on; from the fourth run on, the
    difference to the run two before (rleToString in cocoapi's maskApi.c).
    """
    packed = text.encode("latin-1", "replace") if isinstance(text, str) else text
    codes = np.frombuffer(packed, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("a character outside the RLE alphabet")
    last = (codes & 0x20) == 0
    if not last[-1]:
        raise ValueError("the RLE string is cut short")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("a run of more than 50 bits")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
    negative = (codes[ends] & 0x10) != 0
    values[negative] -= np.int64(1) << (5 * lengths[negative])
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _area_average(grid: np.ndarray, cells: int) -> np.ndarray:
    """Means over `cells` equal stretches of the first axis; stretches may cut through rows."""
    size = grid.shape[0]
    if size == cells:
        return grid
    total = np.zeros((size + 1, grid.shape[1]), dtype=np.float32)
    np.cumsum(grid, axis=0, out=total[1:])
    edges = np.linspace(0, size, cells + 1)
    below = np.minimum(edges.astype(np.int64), size - 1)
    part = (edges - below).astype(np.float32)[:, None]
    at_edges = total[below] * (1 - part) + total[below + 1] * part
    return np.diff(at_edges, axis=0) * np.float32(cells / size)
