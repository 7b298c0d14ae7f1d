"""COCO average precision and recall, through pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, Literal

from sam3dist.errors import DataError

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate_coco(
    gt: str | Path, dt: str | Path | list[dict], iou_type: Literal["bbox", "segm"] = "segm"
) -> dict[str, float]:
    """The 12 numbers of COCOeval, 0..1; -1 where no instance has that size.

    gt: COCO instances. dt: COCO results, a file or the objects; masks may be run lengths or polygons. Raises
    DataError where they do not fit together.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = json.loads(Path(dt).read_text()) if isinstance(dt, str | Path) else dt
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and its table
        truth = COCO(str(gt))
        unknown = {result["image_id"] for result in results} - set(truth.imgs)
        if unknown:
            name = dt if isinstance(dt, str | Path) else "results"
            raise DataError(f"{name}: image_id {min(unknown)} is not in {gt}; evaluate on the images it was made from.")
        if results:
            found = truth.loadRes([_alone(result, iou_type, truth.imgs) for result in results])
        else:
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True))


def _alone(result: dict, iou_type: str, images: dict[int, dict]) -> dict[str, Any]:
    """The result with its box or its mask only: given both, loadRes would take the size of a mask from its box."""
    kept = {name: result[name] for name in ("image_id", "category_id", "score")}
    if iou_type == "bbox":
        return {**kept, "bbox": result["bbox"]}
    segmentation = result["segmentation"]
    if isinstance(segmentation, list):
        from pycocotools import mask as coco_mask

        image = images[result["image_id"]]
        parts = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
        segmentation = coco_mask.merge(parts)
    return {**kept, "segmentation": segmentation}
