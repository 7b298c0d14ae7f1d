"""The quality of a student or teacher over (image, phrase) pairs, from sums that add up across ranks."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import numpy as np
import torch
from torch import Tensor

from sam3dist.metrics.cgf1 import IOU_THRESHOLDS, InstanceCounts, micro_scores, true_positives
from sam3dist.metrics.iou import dice, iou
from sam3dist.metrics.overlap import compare
from sam3dist.metrics.presence import f1, precision, ratio, recall
from sam3dist.predictions import finite_pairs, kept_queries
from sam3dist.types import PromptBatch, SegOutputs

INSTANCE_SUMS = ("true_positives", "false_positives", "false_negatives", "false_positives_of_positives")
"""Each [T], one for each IoU threshold of cgF1."""
PAIR_SUMS = ("pairs_true_positive", "pairs_false_positive", "pairs_true_negative", "pairs_false_negative")
SUMS = (
    "num_pairs",
    "num_positive",
    "num_maskless",
    "num_nonfinite",
    "iou_positive",
    "iou_all",
    "dice",
    "detected_true",
    "detected_false",
    "head_true",
    "head_false",
    *PAIR_SUMS,
)


class Evaluator:
    """Adds up pairs; `compute` turns the sums into the metrics.

    A pair is positive when its phrase names something in the image. A query is kept when
    sigmoid(query) * sigmoid(presence) >= threshold. The prediction of a pair is the union of its kept masks, the
    truth the union of its instances, both at the resolution of the original image (logits bilinearly upsampled,
    above 0); pixels in the crowd region of the pair are taken out of both.

    - `miou_positive`: mean IoU over the positive pairs. One without a truth pixel to find, because all of it is
      crowd, is left out (`num_maskless`).
    - `miou_all`: mean IoU over all pairs, where an empty prediction of an empty truth is 1 and anything else 0.
    - `dice`: mean Dice over the pairs of `miou_positive`.
    - `presence_precision`, `presence_recall`, `presence_f1`: of "at least one query is kept" as the answer to
      "does the phrase name something here?"; counts are added up first.
    - `presence_head_f1`: the same F1 for sigmoid(presence) > 0.5, whatever the queries say.
    - `cgf1`, `pmf1`, `il_mcc`: instances instead of unions, as the SAM3 authors measure them (metrics/cgf1.py), over
      the pairs that are annotated exhaustively and have no crowd region.
    - `num_pairs` = `num_positive` + `num_negative`.
    - `num_nonfinite`: pairs with a NaN or infinite logit. They count as answered with nothing, so a broken model
      gets a low score and not a crash.

    A metric without a denominator is nan (null in JSON): `miou_positive` without positives, `presence_precision`
    without a detection. Apart from cgF1, pairs that are not annotated exhaustively count like all others.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.sums: dict[str, np.ndarray] = {name: np.zeros(()) for name in SUMS}
        self.sums |= {name: np.zeros(len(IOU_THRESHOLDS)) for name in INSTANCE_SUMS}
        self.overlaps: list[float] = []
        """The IoU of each pair of this rank in the order of `update`, as `miou_all` averages them."""

    def update(self, outputs: SegOutputs, batch: PromptBatch) -> None:
        """Adds the pairs of one batch; the outputs may be on any device."""
        finite = finite_pairs(outputs).tolist()
        says_present = (outputs.presence_logits > 0).tolist()  # NaN > 0 is False
        exhaustive = batch.exhaustive.tolist()
        kept = kept_queries(outputs, self.threshold)
        for prompt, present in enumerate(batch.present.tolist()):
            detected, head = len(kept[prompt]) > 0, finite[prompt] and says_present[prompt]
            pixels = compare(outputs.mask_logits[prompt, kept[prompt]], batch, prompt)
            overlap = iou(pixels.both, pixels.predicted, pixels.truth)
            self._add("num_pairs", 1)
            self._add("num_positive", present)
            self._add("num_nonfinite", not finite[prompt])
            self._add("iou_all", overlap)
            self.overlaps.append(overlap)
            self._add("detected_true", detected and present)
            self._add("detected_false", detected and not present)
            self._add("head_true", head and present)
            self._add("head_false", head and not present)
            if pixels.truth:
                self._add("iou_positive", overlap)
                self._add("dice", dice(pixels.both, pixels.predicted, pixels.truth))
            else:
                self._add("num_maskless", present)
            if exhaustive[prompt] and batch.ignore[prompt] is None:
                self._add_instances(pixels.instance_ious)

    def _add_instances(self, ious: np.ndarray) -> None:
        found, instances = ious.shape
        matched = true_positives(ious)
        self._add("true_positives", matched)
        self._add("false_positives", found - matched)
        self._add("false_negatives", instances - matched)
        self._add("false_positives_of_positives", (found - matched) * bool(instances))
        answer = "positive" if found else "negative"
        self._add(f"pairs_{'true' if bool(found) == bool(instances) else 'false'}_{answer}", 1)

    def _add(self, name: str, value: np.ndarray | float) -> None:
        self.sums[name] += value

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Replaces the sums by those of all ranks; call it once, on every rank.

        all_reduce: takes a float64 CPU tensor and returns the sum of every rank's.
        """
        total = all_reduce(torch.from_numpy(np.concatenate([value.ravel() for value in self.sums.values()]))).numpy()
        ends = np.cumsum([value.size for value in self.sums.values()])
        parts = zip(self.sums.items(), np.split(total, ends[:-1]), strict=True)
        self.sums = {name: part.reshape(value.shape) for (name, value), part in parts}

    def compute(self) -> dict[str, float]:
        """The metrics by name, numbers of pairs as integers."""
        sums = {name: float(self.sums[name]) for name in SUMS}
        positive = sums["num_positive"]
        detected, head = sums["detected_true"], sums["head_true"]
        with_pixels = positive - sums["num_maskless"]
        counts = InstanceCounts(**{name: self.sums[name] for name in (*INSTANCE_SUMS, *PAIR_SUMS)})
        judged = any(sums[name] for name in PAIR_SUMS)
        scores = micro_scores(counts) if judged else dict.fromkeys(("cgF1", "positive_micro_F1", "IL_MCC"), nan)
        return {
            "miou_positive": ratio(sums["iou_positive"], with_pixels),
            "miou_all": ratio(sums["iou_all"], sums["num_pairs"]),
            "dice": ratio(sums["dice"], with_pixels),
            "presence_precision": precision(detected, sums["detected_false"]),
            "presence_recall": recall(detected, positive - detected),
            "presence_f1": f1(detected, sums["detected_false"], positive - detected),
            "presence_head_f1": f1(head, sums["head_false"], positive - head),
            "cgf1": float(np.mean(scores["cgF1"])),
            "pmf1": float(np.mean(scores["positive_micro_F1"])),
            "il_mcc": scores["IL_MCC"],
            "num_pairs": int(sums["num_pairs"]),
            "num_positive": int(positive),
            "num_negative": int(sums["num_pairs"] - positive),
            "num_maskless": int(sums["num_maskless"]),
            "num_nonfinite": int(sums["num_nonfinite"]),
        }
