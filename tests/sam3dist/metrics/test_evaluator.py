"""Masks here are rectangles of whole cells, so every number can be counted by hand."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam3dist.data.masks import encode_mask
from sam3dist.metrics.evaluator import Evaluator
from sam3dist.types import PromptBatch, Rle, SegOutputs

SIDE = 8
YES, NO = 20.0, -20.0
LEFT, TOP = np.s_[:, :4], np.s_[:4, :]


def region(*parts: tuple[slice, slice], size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    for part in parts:
        mask[part] = True
    return mask


def batch_of(
    truths: list[list[np.ndarray]],
    crowds: list[np.ndarray | None] | None = None,
    present: list[bool] | None = None,
    size: tuple[int, int] = (SIDE, SIDE),
) -> PromptBatch:
    """One image per pair."""
    count = len(truths)
    ignore: list[Rle | None] = [None if c is None else encode_mask(c) for c in crowds or [None] * count]
    return PromptBatch(
        images=torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
        image_ids=tuple(range(count)),
        image_sizes=(size,) * count,
        prompts=("thing",) * count,
        image_of_prompt=torch.arange(count),
        present=torch.tensor(present or [bool(masks) for masks in truths]),
        masks=tuple(tuple(encode_mask(mask) for mask in masks) for masks in truths),
        ignore=tuple(ignore),
        exhaustive=torch.ones(count, dtype=torch.bool),
    )


def outputs_of(
    masks: list[list[np.ndarray]], queries: list[list[float]] | None = None, presence: list[float] | None = None
) -> SegOutputs:
    """Two queries per pair; the ones without a mask answer NO everywhere."""
    count = len(masks)
    logits = torch.full((count, 2, SIDE, SIDE), NO)
    scores = torch.full((count, 2), NO)
    for pair, found in enumerate(masks):
        for query, mask in enumerate(found):
            logits[pair, query][torch.from_numpy(mask)] = YES
            scores[pair, query] = YES
    return SegOutputs(
        mask_logits=logits,
        query_logits=scores if queries is None else torch.tensor(queries),
        boxes=torch.zeros(count, 2, 4),
        presence_logits=torch.full((count,), YES) if presence is None else torch.tensor(presence),
        semantic_logits=torch.zeros(count, SIDE, SIDE),
    )


def measured(outputs: SegOutputs, batch: PromptBatch, threshold: float = 0.5) -> dict[str, float]:
    evaluator = Evaluator(threshold)
    evaluator.update(outputs, batch)
    return evaluator.compute()


def test_union_of_kept_masks_is_compared_with_union_of_instances():
    # Truth: left half (32 pixels) in two instances. Prediction: top left and top right quarter, 16 of them right.
    truth = [region(np.s_[:4, :4]), region(np.s_[4:, :4])]
    found = [region(np.s_[:4, :4]), region(np.s_[:4, 4:])]
    metrics = measured(outputs_of([found]), batch_of([truth]))
    assert metrics["miou_positive"] == metrics["miou_all"] == 16 / 48
    assert metrics["dice"] == 2 * 16 / 64


def test_absent_prompt_counts_for_presence_but_not_for_miou_positive():
    truths, found = [[region(LEFT)], [], []], [[region(LEFT)], [], [region(TOP)]]
    metrics = measured(outputs_of(found), batch_of(truths))
    assert metrics["miou_positive"] == metrics["dice"] == 1
    assert metrics["miou_all"] == 2 / 3  # right, rightly empty, wrongly found
    assert metrics["presence_precision"] == 1 / 2
    assert metrics["presence_recall"] == 1
    assert metrics["presence_f1"] == 2 / 3
    assert (metrics["num_pairs"], metrics["num_positive"], metrics["num_negative"]) == (3, 1, 2)


def test_crowd_pixels_count_neither_way():
    # Truth: left half. Prediction: top half. Crowd: right half, so only the left 4 columns are judged.
    metrics = measured(outputs_of([[region(TOP)]]), batch_of([[region(LEFT)]], [region(np.s_[:, 4:])]))
    assert metrics["miou_positive"] == 16 / 32


def test_pair_with_nothing_but_crowd_is_no_part_of_miou_positive():
    crowd = region(TOP)
    batch = batch_of([[]], [crowd], present=[True])
    inside, outside = measured(outputs_of([[crowd]]), batch), measured(outputs_of([[region(LEFT)]]), batch)
    assert isnan(inside["miou_positive"])
    assert isnan(outside["miou_positive"])
    assert (inside["miou_all"], outside["miou_all"]) == (1, 0)
    assert inside["num_positive"] == inside["num_maskless"] == 1
    assert inside["presence_recall"] == 1


def test_query_exactly_at_the_threshold_is_kept():
    # sigmoid(0) * sigmoid(20) is 0.5 in float32.
    batch, found = batch_of([[region(LEFT)]]), [[region(LEFT)]]
    assert measured(outputs_of(found, queries=[[0.0, NO]]), batch)["miou_positive"] == 1
    assert measured(outputs_of(found, queries=[[-1e-3, NO]]), batch)["miou_positive"] == 0
    assert measured(outputs_of(found, queries=[[-1e-3, NO]]), batch, threshold=0.49)["miou_positive"] == 1


def test_presence_multiplies_the_score_and_the_head_is_judged_alone():
    batch = batch_of([[region(LEFT)], []])
    metrics = measured(outputs_of([[region(LEFT)], []], presence=[-0.1, 0.1]), batch)
    assert metrics["presence_recall"] == 0  # sigmoid(-0.1) * 1 < 0.5
    assert metrics["presence_f1"] == 0
    assert isnan(metrics["presence_precision"])
    assert metrics["presence_head_f1"] == 0  # says yes to the absent one only
    swapped = measured(outputs_of([[region(LEFT)], []], presence=[0.1, -0.1]), batch)
    assert swapped["presence_head_f1"] == swapped["presence_f1"] == 1


def test_masks_are_compared_at_the_size_of_the_original_image():
    size = (37, 61)
    generator = torch.Generator().manual_seed(0)
    outputs = outputs_of([[region(LEFT)]])
    outputs.mask_logits[:] = torch.randn(outputs.mask_logits.shape, generator=generator)
    outputs.query_logits[:] = YES
    truth = region(np.s_[5:30, 7:50], size=size)
    # Independent: the bilinear weights of half-pixel centres, written out.
    rows, columns = (_bilinear_weights(SIDE, n) for n in size)
    predicted = ((rows @ outputs.mask_logits[0].double() @ columns.T) > 0).any(0).numpy()
    expected = (predicted & truth).sum() / (predicted | truth).sum()
    metrics = measured(outputs, batch_of([[truth]], size=size))
    assert metrics["miou_positive"] == expected


def _bilinear_weights(cells: int, pixels: int) -> torch.Tensor:
    weights = torch.zeros(pixels, cells, dtype=torch.float64)
    for pixel in range(pixels):
        centre = min(max((pixel + 0.5) * cells / pixels - 0.5, 0), cells - 1)
        below = int(centre)
        weights[pixel, below] += 1 - (centre - below)
        weights[pixel, min(below + 1, cells - 1)] += centre - below
    return weights


@pytest.mark.parametrize("field", ["mask_logits", "query_logits", "presence_logits"])
@pytest.mark.parametrize("value", [nan, float("inf")])
def test_non_finite_output_is_counted_and_scored_as_empty(field: str, value: float):
    outputs = outputs_of([[region(LEFT)]] * 3)
    getattr(outputs, field)[0].fill_(value)
    metrics = measured(outputs, batch_of([[region(LEFT)], [region(LEFT)], []]))
    assert metrics["num_nonfinite"] == 1
    assert metrics["miou_positive"] == 1 / 2
    assert metrics["presence_recall"] == 1 / 2
    assert metrics["presence_head_f1"] == 2 / 4  # one found, one missed, one false


def test_instances_count_for_cgf1_where_all_of_them_are_known():
    halves, quarter = [region(LEFT), region(np.s_[:, 4:])], region(np.s_[:4, :4])
    truths = [halves, [], [region(LEFT)], [region(LEFT)]]
    found = [[region(LEFT), quarter], [], [region(TOP)], [region(TOP)]]
    batch = batch_of(truths, crowds=[None, None, None, region(np.s_[7:, 7:])])
    partly = PromptBatch(**{**vars(batch), "exhaustive": torch.tensor([True, True, False, True])})
    metrics = measured(outputs_of(found), partly)
    # Two pairs are left: one with 1 hit, 1 false and 1 missed instance, one rightly empty.
    assert metrics["pmf1"] == pytest.approx(1 / 2, abs=1e-4)
    assert metrics["il_mcc"] == pytest.approx(1, abs=1e-5)
    assert metrics["cgf1"] == pytest.approx(1 / 2, abs=1e-4)


def test_metrics_without_a_denominator_are_nan():
    nothing = Evaluator(0.5).compute()
    assert all(isnan(value) for name, value in nothing.items() if not name.startswith("num_"))
    absent_only = measured(outputs_of([[]], presence=[NO]), batch_of([[]]))
    assert absent_only["miou_all"] == 1
    assert isnan(absent_only["miou_positive"])
    assert isnan(absent_only["presence_f1"])


def test_sums_of_uneven_ranks_give_the_numbers_of_one_rank():
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(7):
        truth = [generator.random((SIDE, SIDE)) > 0.5] * int(generator.integers(2))
        found = [generator.random((SIDE, SIDE)) > 0.5] * int(generator.integers(3))
        pairs.append((outputs_of([found]), batch_of([truth])))
    alone, ranks = Evaluator(0.5), [Evaluator(0.5), Evaluator(0.5), Evaluator(0.5)]
    for number, pair in enumerate(pairs):
        alone.update(*pair)
        ranks[0 if number < 6 else 1].update(*pair)  # the third has none
    tensors: list[torch.Tensor] = []
    for rank in ranks:
        rank.reduce(lambda own: tensors.append(own) or own)
    ranks[2].reduce(lambda own: torch.stack(tensors).sum(0))
    assert ranks[2].compute() == pytest.approx(alone.compute(), abs=1e-12, nan_ok=True)
    assert alone.compute()["num_positive"] not in (0, 7)


def test_half_precision_masks_are_measured():
    outputs = outputs_of([[region(LEFT)]])
    halved = SegOutputs(**{**vars(outputs), "mask_logits": outputs.mask_logits.bfloat16()})
    assert measured(halved, batch_of([[region(LEFT)]]))["miou_positive"] == 1


def test_many_queries_on_a_large_image_are_upsampled_in_parts():
    size = (1500, 1500)
    found = torch.full((1, 20, SIDE, SIDE), NO)
    for query in range(SIDE):
        found[0, query, query] = YES
    outputs = SegOutputs(
        mask_logits=found,
        query_logits=torch.full((1, 20), YES),
        boxes=torch.zeros(1, 20, 4),
        presence_logits=torch.tensor([YES]),
        semantic_logits=torch.zeros(1, SIDE, SIDE),
    )
    expected = (F.interpolate(found, size=size, mode="bilinear")[0] > 0).any(0).float().mean().item()
    metrics = measured(outputs, batch_of([[np.ones(size, dtype=bool)]], size=size))
    assert metrics["miou_positive"] == pytest.approx(expected, rel=1e-6)
