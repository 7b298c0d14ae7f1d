"""One annotation -> run lengths, with every way in which it can be wrong checked before C code sees it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sam3dist.data.masks import counts_from_string, decode_rle, encode_mask, rle_area
from sam3dist.data.rejects import Reject
from sam3dist.types import Rle


def annotation_rle(annotation: dict, height: int, width: int) -> Rle:
    """The mask of an annotation; raises Reject where box or segmentation cannot be used."""
    _check_box(annotation.get("bbox"))
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        rle = _from_runs(segmentation, height, width)
    elif isinstance(segmentation, list):
        rle = _from_polygons(segmentation, height, width)
    else:
        raise Reject("no segmentation", f"segmentation {segmentation!r:.40}")
    if not rle_area(rle):
        raise Reject("empty mask", "no pixel is set")
    return rle


def union(masks: list[Rle]) -> Rle:
    """The pixels of any of the masks."""
    merged = decode_rle(masks[0])
    for rle in masks[1:]:
        merged = merged | decode_rle(rle)
    return encode_mask(merged)


def _check_box(box: Any) -> None:
    """The stored box comes from the mask, but a wrong one says that the annotation is broken."""
    if box is None:
        return
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise Reject("bad box", f"bbox {box!r:.60} is not four numbers")
    if not all(math.isfinite(value) for value in box):
        raise Reject("non-finite box", f"bbox {box}")
    if box[0] < -1 or box[1] < -1 or box[2] < 0 or box[3] < 0:  # a pixel outside is what rounding leaves
        raise Reject("negative box", f"bbox {box}")
    if box[2] == 0 or box[3] == 0:
        raise Reject("empty box", f"bbox {box}")


def _from_runs(segmentation: dict, height: int, width: int) -> Rle:
    size, packed = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise Reject("mask size", f"mask {size!r:.40} in an image of {[height, width]}")
    if isinstance(packed, str):
        try:
            counts = counts_from_string(packed)
        except ValueError as error:
            raise Reject("rle counts", str(error)) from None
    elif isinstance(packed, list) and all(type(run) is int and 0 <= run < 2**32 for run in packed):
        counts = np.array(packed, dtype=np.int64)
    else:
        raise Reject("rle counts", f"counts {packed!r:.40}")
    if (counts < 0).any() or counts.sum() != height * width:
        raise Reject("rle counts", f"runs add up to {counts.sum()}, the image has {height * width} pixels")
    return Rle(height, width, counts.astype(np.uint32))


def _from_polygons(polygons: list, height: int, width: int) -> Rle:
    from pycocotools import mask as coco_mask

    for polygon in polygons:
        if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
            raise Reject("bad polygon", f"{polygon!r:.60} is no list of numbers")
        if not all(math.isfinite(value) for value in polygon):
            raise Reject("bad polygon", "a coordinate is not finite")
        # pycocotools walks the outline pixel by pixel: a far corner costs gigabytes.
        if any(abs(value) > 4 * max(height, width) for value in polygon):
            raise Reject("bad polygon", f"a corner lies far outside the image of {height} x {width}")
    # Two corners make no area, and pycocotools would read four numbers as a box.
    whole = [[float(value) for value in polygon] for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not whole:
        raise Reject("degenerate polygon", f"{len(polygons)} parts, none with three corners")
    packed = coco_mask.merge(coco_mask.frPyObjects(whole, height, width))["counts"]
    rle = Rle(height, width, counts_from_string(packed).astype(np.uint32))
    if not rle_area(rle):
        raise Reject("degenerate polygon", "it covers no pixel")
    return rle


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
