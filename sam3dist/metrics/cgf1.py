"""cgF1, the measure of the SAM3 paper: are the right instances found, and nothing where the phrase names nothing?

The unit is a pair of image and phrase. Found and true masks are assigned to each other so that the sum of IoUs is
greatest; at an IoU threshold t an assigned couple with IoU >= t is a true positive. Defined by the paper's
evaluator (facebookresearch/sam3, sam3/eval/cgf1_eval.py), with its small constants; written anew over arrays.

A annotators, P pairs, T = 10 IoU thresholds .50, .55, ... .95.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from sam3dist.data.rejects import Reject
from sam3dist.data.segmentation import annotation_rle
from sam3dist.errors import DataError
from sam3dist.metrics.iou import pairwise_iou
from sam3dist.types import Rle

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
PREFIX = "cgF1_eval_segm_"


@dataclass(frozen=True)
class InstanceCounts:
    """Instances of all pairs at each threshold, and what the pairs answer as a whole."""

    true_positives: np.ndarray  # [T]
    false_positives: np.ndarray  # [T]
    false_negatives: np.ndarray  # [T]
    false_positives_of_positives: np.ndarray  # [T] of the pairs that have a true instance only
    pairs_true_positive: np.ndarray  # [] something to find, something found
    pairs_false_positive: np.ndarray
    pairs_true_negative: np.ndarray
    pairs_false_negative: np.ndarray


def evaluate_cgf1(
    gt_jsons: str | Path | Sequence[str | Path], pred_json: str | Path, threshold: float = 0.5
) -> dict[str, float]:
    """The 26 numbers of the SAM3 authors' evaluator, by their names ("cgF1_eval_segm_cgF1@0.5").

    gt_jsons: one SA-Co file, or one for each annotator; then each pair is judged by the annotator who agrees best.
    pred_json: COCO results whose `image_id` is the id of a pair; those with a score below `threshold` are left out.
    Pairs that an annotator did not annotate exhaustively are skipped, crowd regions are no instances, and
    categories are ignored, because the pair implies the phrase. Raises DataError where a file cannot be used.
    """
    paths = [Path(path) for path in ([gt_jsons] if isinstance(gt_jsons, str | Path) else gt_jsons)]
    annotators = [_Annotator(path) for path in paths]
    found = _predictions(Path(pred_json), annotators[0], threshold)
    partly = set().union(*(annotator.not_exhaustive for annotator in annotators))
    pairs = [pair for pair in annotators[0].sizes if pair not in partly]

    shape = (len(annotators), len(pairs))
    matched = np.zeros((*shape, len(IOU_THRESHOLDS)), dtype=np.int64)
    detections, instances = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, annotator in enumerate(annotators):
        for column, pair in enumerate(pairs):
            truths, guesses = annotator.masks.get(pair, []), found.get(pair, [])
            detections[row, column], instances[row, column] = len(guesses), len(truths)
            matched[row, column] = true_positives(pairwise_iou(guesses, truths))
    asked = np.array([[pair in annotator.sizes for pair in pairs] for annotator in annotators])
    return _numbers(matched, detections, instances, asked)


def true_positives(ious: np.ndarray) -> np.ndarray:
    """[T] int: couples at or above each IoU threshold in the assignment with the greatest total IoU [D, G]."""
    if ious.size == 0:
        return np.zeros(len(IOU_THRESHOLDS), dtype=np.int64)
    overlaps = ious[linear_sum_assignment(ious, maximize=True)]
    return (overlaps >= IOU_THRESHOLDS[:, None]).sum(axis=1)


def micro_scores(counts: InstanceCounts) -> dict[str, Any]:
    """The ratios of counts: per threshold [T] for instances, one number for whole pairs (IL: image level).

    `cgF1` is `positive_micro_F1` times `IL_MCC`, Matthews' correlation of "something to find" and "something found".
    """
    hits, missed = counts.true_positives, counts.false_negatives
    precision = hits / (hits + counts.false_positives + 1e-4)
    positive_precision = hits / (hits + counts.false_positives_of_positives + 1e-4)
    recall = hits / (hits + missed + 1e-4)
    positive_f1 = _harmonic(positive_precision, recall, 1e-4)

    tp, fp = float(counts.pairs_true_positive), float(counts.pairs_false_positive)
    tn, fn = float(counts.pairs_true_negative), float(counts.pairs_false_negative)
    il_precision, il_recall = tp / (tp + fp + 1e-6), tp / (tp + fn + 1e-6)
    mcc = (tp * tn - fp * fn) / (((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5 + 1e-6)
    return {
        "cgF1": positive_f1 * mcc,
        "precision": precision,
        "recall": recall,
        "F1": _harmonic(precision, recall, 1e-4),
        "positive_micro_F1": positive_f1,
        "positive_micro_precision": positive_precision,
        "IL_precision": il_precision,
        "IL_recall": il_recall,
        "IL_F1": _harmonic(il_precision, il_recall, 1e-6),
        "IL_FPR": fp / (fp + tn + 1e-6),
        "IL_MCC": mcc,
    }


def _numbers(matched: np.ndarray, detections: np.ndarray, instances: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """The named numbers, from couples [A, P, T], numbers of masks [A, P], and who was asked about which pair [A, P]."""
    wrong, missed = detections[..., None] - matched, instances[..., None] - matched
    f1 = _harmonic(matched / (matched + wrong + 1e-4), matched / (matched + missed + 1e-4), 1e-4)

    # Nothing to find and nothing found is perfect; otherwise the first annotator with the best mean F1.
    agreement = np.where((detections == 0) & (instances == 0), np.inf, f1.mean(axis=-1))
    agreement[~asked] = -1
    best = (agreement.argmax(axis=0), np.arange(matched.shape[1]))
    matched, wrong, missed, f1 = matched[best], wrong[best], missed[best], f1[best]
    any_found, any_true = detections[best] > 0, instances[best] > 0

    counts = InstanceCounts(
        true_positives=matched.sum(axis=0),
        false_positives=wrong.sum(axis=0),
        false_negatives=missed.sum(axis=0),
        false_positives_of_positives=wrong[any_true].sum(axis=0),
        pairs_true_positive=(any_true & any_found).sum(),
        pairs_false_positive=(~any_true & any_found).sum(),
        pairs_true_negative=(~any_true & ~any_found).sum(),
        pairs_false_negative=(any_true & ~any_found).sum(),
    )
    scores = micro_scores(counts)
    with np.errstate(invalid="ignore"):  # nan where no pair has both; the authors print -1
        scores["positive_macro_F1"] = f1[any_true].sum(axis=0) / counts.pairs_true_positive
    numbers = {name: float(np.mean(value)) for name, value in scores.items()}
    for index in (0, 5):  # IoU .50 and .75
        at = f"@{IOU_THRESHOLDS[index]:g}"
        numbers |= {name + at: float(value[index]) for name, value in scores.items() if np.ndim(value)}
    return {PREFIX + name: value for name, value in numbers.items()}


def _harmonic(a: Any, b: Any, epsilon: float) -> Any:
    return 2 * a * b / (a + b + epsilon)


class _Annotator:
    """One person's answers: sizes and masks by pair."""

    def __init__(self, path: Path) -> None:
        content = _load(path)
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise DataError(f"{path}: no `images` and `annotations`; give a file in the SA-Co format.")
        self.path = path
        self.sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        self.not_exhaustive = {
            image["id"] for image in content["images"] if not image.get("is_instance_exhaustive", True)
        }
        found = [annotation for annotation in content["annotations"] if not annotation.get("iscrowd", 0)]
        self.masks = _masks(path, found, self.sizes)


def _predictions(path: Path, truth: _Annotator, threshold: float) -> dict[int, list[Rle]]:
    content = _load(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: not a list; give COCO results, one object for each instance.")
    return _masks(path, (result for result in content if result["score"] >= threshold), truth.sizes)


def _masks(path: Path, annotations: Iterable[dict], sizes: dict[int, tuple[int, int]]) -> dict[int, list[Rle]]:
    """The masks of each pair in file order."""
    masks: dict[int, list[Rle]] = {}
    for annotation in annotations:
        pair = annotation["image_id"]
        if pair not in sizes:
            raise DataError(f"{path}: image_id {pair} is no pair of the ground truth; use the ids of its `images`.")
        height, width = sizes[pair]
        try:
            rle = annotation_rle({"segmentation": annotation.get("segmentation")}, height, width)
        except Reject as reject:
            if reject.reason != "empty mask":
                raise DataError(
                    f"{path}: a mask of image_id {pair} cannot be used: {reject.detail}; mend or drop it."
                ) from None
            rle = Rle(height, width, np.array([height * width], dtype=np.uint32))
        masks.setdefault(pair, []).append(rle)
    return masks


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path.") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); check that it is complete.") from None
