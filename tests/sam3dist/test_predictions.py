from __future__ import annotations

from math import nan

import numpy as np
import pytest
import torch

from sam3dist.predictions import coco_results, instance_scores, predictions
from sam3dist.types import PromptBatch, SegOutputs


def question(size: tuple[int, int]) -> PromptBatch:
    """Two phrases about the second of two images."""
    return PromptBatch(
        images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        image_ids=(1, 2),
        image_sizes=((5, 5), size),
        prompts=("a", "b"),
        image_of_prompt=torch.tensor([1, 1]),
        present=torch.tensor([True, True]),
        masks=((), ()),
        ignore=(None, None),
        exhaustive=torch.ones(2, dtype=torch.bool),
    )


def answer() -> SegOutputs:
    """Query 0: left half; query 1: top half; query 2: everything. Cells are 2 x 2."""
    masks = torch.tensor([[[1.0, -1.0], [1.0, -1.0]], [[1.0, 1.0], [-1.0, -1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    return SegOutputs(
        mask_logits=masks.expand(2, 3, 2, 2).clone(),
        query_logits=torch.tensor([[1.0, 3.0, -3.0], [0.0, 0.0, 0.0]]),
        boxes=torch.tensor([[0.0, 0.25, 0.5, 1.0]]).expand(2, 3, 4),
        presence_logits=torch.tensor([20.0, -1.0]),
        semantic_logits=torch.zeros(2, 2, 2),
    )


def test_kept_instances_come_best_first_in_pixels_of_the_original():
    first, second = predictions(answer(), question((6, 8)), 0.5)
    assert second == []  # sigmoid(0) * sigmoid(-1) is below
    assert [instance.score for instance in first] == pytest.approx([0.952574, 0.731059], abs=1e-5)
    assert first[0].box == (0.0, 1.5, 4.0, 6.0)
    top, left = first[0].mask, first[1].mask
    assert top.shape == left.shape == (6, 8)
    assert top.dtype == bool
    assert top.tolist() == [[row < 3] * 8 for row in range(6)]
    assert left.tolist() == [[column < 4 for column in range(8)]] * 6


def test_score_is_query_times_presence():
    scores = instance_scores(answer())
    assert scores[1].tolist() == pytest.approx([0.5 / (1 + np.e)] * 3)


def test_pair_with_nan_has_no_instance_and_the_other_pair_keeps_its_own():
    outputs = answer()
    outputs.mask_logits[1, 2, 0, 0] = nan  # a query that would not be kept
    outputs.presence_logits[1] = 20.0
    found = predictions(outputs, question((6, 8)), 0.4)
    assert [len(instances) for instances in found] == [2, 0]


def test_exported_run_lengths_decode_to_the_masks():
    coco_mask = pytest.importorskip("pycocotools.mask")
    instances = predictions(answer(), question((6, 8)), 0.5)[0]
    results = coco_results(instances, image_id=2)
    for instance, result in zip(instances, results, strict=True):
        assert isinstance(result["segmentation"]["counts"], str)
        assert (coco_mask.decode(result["segmentation"]) == instance.mask).all()
    assert results[0]["bbox"] == [0.0, 1.5, 4.0, 4.5]
    assert (results[0]["image_id"], results[0]["category_id"]) == (2, 1)
