"""The quality of a student or teacher over (image, phrase) pairs, from sums that add up across ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sam3dist.data.masks import decode_rle, rle_area
from sam3dist.metrics.iou import dice, iou
from sam3dist.metrics.presence import f1, precision, ratio, recall
from sam3dist.predictions import finite_pairs, image_size, kept_queries, upsampled
from sam3dist.types import PromptBatch, SegOutputs

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
    - `num_pairs` = `num_positive` + `num_negative`.
    - `num_nonfinite`: pairs with a NaN or infinite logit. They count as answered with nothing, so a broken model
      gets a low score and not a crash.

    A metric without a denominator is nan (null in JSON): `miou_positive` without positives, `presence_precision`
    without a detection. Pairs that are not annotated exhaustively count like all others.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.sums = dict.fromkeys(SUMS, 0.0)

    def update(self, outputs: SegOutputs, batch: PromptBatch) -> None:
        """Adds the pairs of one batch; the outputs may be on any device."""
        finite = finite_pairs(outputs).tolist()
        says_present = (outputs.presence_logits > 0).tolist()  # NaN > 0 is False
        kept = kept_queries(outputs, self.threshold)
        for prompt, present in enumerate(batch.present.tolist()):
            queries = kept[prompt]
            detected, head = len(queries) > 0, finite[prompt] and says_present[prompt]
            logits = outputs.mask_logits[prompt, queries]
            intersection, predicted, truth = _pixel_counts(logits, batch, prompt)
            overlap = iou(intersection, predicted, truth)
            self._add("num_pairs", 1)
            self._add("num_positive", present)
            self._add("num_nonfinite", not finite[prompt])
            self._add("iou_all", overlap)
            self._add("detected_true", detected and present)
            self._add("detected_false", detected and not present)
            self._add("head_true", head and present)
            self._add("head_false", head and not present)
            if truth:
                self._add("iou_positive", overlap)
                self._add("dice", dice(intersection, predicted, truth))
            else:
                self._add("num_maskless", present)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Replaces the sums by those of all ranks; call it once, on every rank.

        all_reduce: takes a float64 CPU tensor and returns the sum of every rank's.
        """
        total = all_reduce(torch.tensor([self.sums[name] for name in SUMS], dtype=torch.float64))
        self.sums = dict(zip(SUMS, total.tolist(), strict=True))

    def compute(self) -> dict[str, float]:
        """The metrics by name, numbers of pairs as integers."""
        sums = self.sums
        positive = sums["num_positive"]
        detected, head = sums["detected_true"], sums["head_true"]
        with_pixels = positive - sums["num_maskless"]
        return {
            "miou_positive": ratio(sums["iou_positive"], with_pixels),
            "miou_all": ratio(sums["iou_all"], sums["num_pairs"]),
            "dice": ratio(sums["dice"], with_pixels),
            "presence_precision": precision(detected, sums["detected_false"]),
            "presence_recall": recall(detected, positive - detected),
            "presence_f1": f1(detected, sums["detected_false"], positive - detected),
            "presence_head_f1": f1(head, sums["head_false"], positive - head),
            "num_pairs": int(sums["num_pairs"]),
            "num_positive": int(positive),
            "num_negative": int(sums["num_pairs"] - positive),
            "num_maskless": int(sums["num_maskless"]),
            "num_nonfinite": int(sums["num_nonfinite"]),
        }

    def _add(self, name: str, value: float) -> None:
        self.sums[name] += value


def _pixel_counts(logits: Tensor, batch: PromptBatch, prompt: int) -> tuple[int, int, int]:
    """Pixels of (both, the prediction, the truth) outside the crowd region, given the kept mask logits [K, h, w]."""
    instances, crowd = batch.masks[prompt], batch.ignore[prompt]
    size = image_size(batch, prompt)
    assert all((rle.height, rle.width) == size for rle in instances)
    if len(logits) == 0 and crowd is None and len(instances) <= 1:
        return 0, 0, sum(map(rle_area, instances))  # nothing to decode
    truth = torch.zeros(size, dtype=torch.bool)
    for rle in instances:
        truth |= torch.from_numpy(decode_rle(rle))
    truth = truth.to(logits.device)
    predicted = torch.zeros_like(truth)
    for masks in upsampled(logits, size):
        predicted |= masks.any(dim=0)
    if crowd is not None:
        counted = ~torch.from_numpy(decode_rle(crowd)).to(logits.device)
        truth &= counted
        predicted &= counted
    counts = torch.stack([(truth & predicted).sum(), predicted.sum(), truth.sum()]).tolist()
    return counts[0], counts[1], counts[2]
