from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sam3dist.data.masks import encode_mask
from sam3dist.errors import DataError
from sam3dist.metrics.cgf1 import PREFIX, evaluate_cgf1, true_positives
from sam3dist.metrics.evaluator import Evaluator
from sam3dist.metrics.iou import pairwise_iou
from sam3dist.predictions import coco_results, predictions
from sam3dist.types import SegOutputs


@pytest.mark.parametrize(
    ("case", "annotators", "results"),
    [
        ("single_gt_a", ["a"], "pred.json"),
        ("oracle_gt_abc", ["a", "b", "c"], "pred.json"),
        ("perfect_gt_a", ["a"], "pred_perfect.json"),
    ],
)
def test_all_26_numbers_are_those_of_the_authors_evaluator(shared_data, case, annotators, results):
    folder = shared_data / "oracles" / "cgf1_reference"
    expected = json.loads((folder / "expected.json").read_text())[case]
    numbers = evaluate_cgf1([folder / f"gt_{name}.json" for name in annotators], folder / results)
    assert len(expected) == 26
    assert numbers == expected


def test_overlaps_from_run_lengths_are_those_of_pixels():
    generator = np.random.default_rng(0)
    masks = [generator.random((13, 9)) > share for share in (0.2, 0.5, 0.9, 0.98)]
    masks += [np.zeros((13, 9), bool), np.ones((13, 9), bool), masks[2]]
    overlaps = pairwise_iou([encode_mask(m) for m in masks[::-1]], [encode_mask(m) for m in masks])
    for row, found in enumerate(masks[::-1]):
        for column, truth in enumerate(masks):
            either = (found | truth).sum()
            assert overlaps[row, column] == ((found & truth).sum() / either if either else 0)


def test_assignment_takes_the_greatest_sum_and_not_the_greatest_first():
    # Greedy would take .9 and be left with .1: one hit at .5. The best sum is .6 + .8: two hits.
    ious = np.array([[0.9, 0.6], [0.8, 0.1]])
    assert true_positives(ious).tolist() == [2, 2, 2, 1, 1, 1, 1, 0, 0, 0]


def square(left: int, width: int = 4) -> np.ndarray:
    mask = np.zeros((10, 20), dtype=bool)
    mask[:4, left : left + width] = True
    return mask


def runs(mask: np.ndarray) -> dict:
    return {"size": list(mask.shape), "counts": encode_mask(mask).counts.tolist()}


def write(path: Path, pairs: dict[int, list[np.ndarray]], **more: dict) -> Path:
    """An SA-Co file; `more` overrides fields of images (by "image_ID") and annotations (by "all")."""
    images = [
        {"id": pair, "height": 10, "width": 20, "is_instance_exhaustive": 1, **more.get(f"image_{pair}", {})}
        for pair in pairs
    ]
    annotations = [
        {"image_id": pair, "category_id": 1, "segmentation": runs(mask), "iscrowd": 0, **more.get("all", {})}
        for pair, masks in pairs.items()
        for mask in masks
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def write_results(path: Path, found: dict[int, list[np.ndarray]], score: float = 0.9) -> Path:
    results = [
        {"image_id": pair, "category_id": 1, "segmentation": runs(mask), "score": score}
        for pair, masks in found.items()
        for mask in masks
    ]
    path.write_text(json.dumps(results))
    return path


def test_three_pairs_counted_by_hand(tmp_path):
    # Pair 1: one of two found, and one found that is not there. Pair 2: absent, yet found. Pair 3: absent, not found.
    truth = write(tmp_path / "gt.json", {1: [square(0), square(8)], 2: [], 3: []})
    results = write_results(tmp_path / "pred.json", {1: [square(0), square(14)], 2: [square(0)]})
    numbers = evaluate_cgf1(truth, results)
    # TP 1, FP 2 (1 in the positive pair), FN 1; pairs: 1 true, 1 false positive, 1 true negative.
    assert numbers[PREFIX + "precision"] == pytest.approx(1 / 3, abs=1e-4)
    assert numbers[PREFIX + "positive_micro_F1"] == pytest.approx(1 / 2, abs=1e-4)
    assert numbers[PREFIX + "IL_MCC"] == pytest.approx(1 / 2, abs=1e-5)  # 1 / sqrt(2 * 1 * 2 * 1)
    assert numbers[PREFIX + "cgF1"] == pytest.approx(1 / 4, abs=1e-4)


def test_pair_that_any_annotator_left_incomplete_is_skipped(tmp_path):
    pairs = {1: [square(0)], 2: [square(0)], 3: []}
    first = write(tmp_path / "a.json", pairs, image_1={"is_instance_exhaustive": 0})
    second = write(tmp_path / "b.json", pairs, image_2={"is_instance_exhaustive": 0})
    results = write_results(tmp_path / "pred.json", {1: [square(0)]})
    assert evaluate_cgf1(first, results)[PREFIX + "recall"] == 0  # pair 2 is left, and missed
    assert evaluate_cgf1([first, second], results)[PREFIX + "IL_FPR"] == 0
    assert evaluate_cgf1(second, results)[PREFIX + "recall"] == pytest.approx(1, abs=1e-3)  # pair 1 is left


def test_annotator_who_was_not_asked_about_a_pair_does_not_judge_it(tmp_path):
    first = write(tmp_path / "a.json", {1: [square(0)], 2: []})
    second = write(tmp_path / "b.json", {2: []})
    results = write_results(tmp_path / "pred.json", {})
    alone = evaluate_cgf1(first, results)
    assert alone[PREFIX + "IL_recall"] == 0
    assert evaluate_cgf1([first, second], results) == pytest.approx(alone, nan_ok=True)


def test_crowd_is_no_instance_and_low_scores_are_left_out(tmp_path):
    crowd = write(tmp_path / "gt.json", {1: [square(0)]}, all={"iscrowd": 1})
    at = write_results(tmp_path / "at.json", {1: [square(0)]}, score=0.5)
    below = write_results(tmp_path / "below.json", {1: [square(0)]}, score=0.4999)
    assert evaluate_cgf1(crowd, at)[PREFIX + "IL_FPR"] == pytest.approx(1, abs=1e-5)
    assert evaluate_cgf1(crowd, below)[PREFIX + "IL_FPR"] == 0


def test_evaluator_agrees_with_the_files_it_would_export(tmp_path, make_batch):
    pytest.importorskip("pycocotools")
    import torch

    batch = make_batch(images=3, prompts_per_image=3, seed=4)
    generator = torch.Generator().manual_seed(0)
    count, side = len(batch.prompts), 28
    logits = torch.randn(count, 4, side, side, generator=generator) * 0.1 - 1
    for pair, masks in enumerate(batch.masks):  # rough copies of the truth, so that some couples match
        for query, rle in enumerate(masks):
            ones = np.cumsum(rle.counts)
            flat = np.zeros(rle.height * rle.width, dtype=np.float32)
            for start, stop in zip(ones[0:-1:2], ones[1::2], strict=False):
                flat[start:stop] = 1
            mask = torch.from_numpy(flat.reshape(rle.width, rle.height).T.copy())
            logits[pair, query] += 2 * torch.nn.functional.avg_pool2d(mask[None], 4)[0]
    outputs = SegOutputs(
        mask_logits=logits,
        query_logits=torch.randn(count, 4, generator=generator) * 2,
        boxes=torch.zeros(count, 4, 4),
        presence_logits=torch.randn(count, generator=generator) + 4,
        semantic_logits=torch.zeros(count, side, side),
    )
    evaluator = Evaluator(0.5)
    evaluator.update(outputs, batch)
    metrics = evaluator.compute()

    size = {"height": 112, "width": 112, "is_instance_exhaustive": 1}
    content = {
        "images": [{"id": pair, **size} for pair in range(count)],
        "annotations": [
            {"image_id": pair, "segmentation": {"size": [112, 112], "counts": rle.counts.tolist()}}
            for pair, masks in enumerate(batch.masks)
            for rle in masks
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    exported = [
        result
        for pair, instances in enumerate(predictions(outputs, batch, 0.5))
        for result in coco_results(instances, image_id=pair)
    ]
    (tmp_path / "pred.json").write_text(json.dumps(exported))
    numbers = evaluate_cgf1(tmp_path / "gt.json", tmp_path / "pred.json")
    assert 0 < metrics["pmf1"] < 1
    assert metrics["cgf1"] == pytest.approx(numbers[PREFIX + "cgF1"], abs=1e-12)
    assert metrics["pmf1"] == pytest.approx(numbers[PREFIX + "positive_micro_F1"], abs=1e-12)
    assert metrics["il_mcc"] == pytest.approx(numbers[PREFIX + "IL_MCC"], abs=1e-12)


def test_unusable_files_are_named(tmp_path):
    truth = write(tmp_path / "gt.json", {1: [square(0)]})
    with pytest.raises(DataError, match=r"pred\.json: image_id 7 is no pair"):
        evaluate_cgf1(truth, write_results(tmp_path / "pred.json", {7: [square(0)]}))
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read"):
        evaluate_cgf1(tmp_path / "nowhere.json", tmp_path / "pred.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"cut\.json: not JSON"):
        evaluate_cgf1(tmp_path / "cut.json", tmp_path / "pred.json")
    short = [{"image_id": 1, "score": 1.0, "segmentation": {"size": [10, 20], "counts": [3]}}]
    (tmp_path / "short.json").write_text(json.dumps(short))
    with pytest.raises(DataError, match=r"short\.json: a mask of image_id 1"):
        evaluate_cgf1(truth, tmp_path / "short.json")
