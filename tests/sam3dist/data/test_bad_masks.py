"""Boxes and masks that cannot be used are set aside; what is left of their phrase is not exhaustive."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.sam3dist.data.coco_folder import SIZE, CocoFolder


def bad_instance(coco: CocoFolder, reason: str, **record: Any) -> None:
    image = coco.image()
    coco.instance(image, 1)
    coco.instance(image, 1, **record)
    manifest = coco.prepare()
    assert manifest["rejected"] == {reason: 1}
    (row,) = coco.rows()
    cat = next(prompt for prompt in row.prompts if prompt.phrase == "cat")
    assert len(cat.instances) == 1
    assert not cat.exhaustive  # one instance is known to be missing


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_box(coco: CocoFolder, value: float):
    bad_instance(coco, "non-finite box", bbox=[0, value, 4, 4])


@pytest.mark.parametrize("box", [[-5, 0, 4, 4], [0, -5, 4, 4], [8, 8, -4, 4], [8, 8, 4, -4]])
def test_a_negative_box(coco: CocoFolder, box: list):
    bad_instance(coco, "negative box", bbox=box)


@pytest.mark.parametrize("box", [[3, 3, 0, 4], [3, 3, 4, 0]])
def test_a_box_of_zero_area(coco: CocoFolder, box: list):
    bad_instance(coco, "empty box", bbox=box)


@pytest.mark.parametrize("box", [[1, 2, 3], "1 2 3 4", [1, 2, 3, None], {"x": 1}])
def test_a_box_that_is_not_four_numbers(coco: CocoFolder, box: Any):
    bad_instance(coco, "bad box", bbox=box)


def test_a_mask_of_another_size_than_its_image(coco: CocoFolder):
    bad_instance(coco, "mask size", segmentation={"size": [32, 24], "counts": [100, 50, 618]})


@pytest.mark.parametrize(
    "counts",
    [
        [100, 50],
        [100, 50, 10_000],
        [-10, 20, 758],
        [1.5, 766.5],
        [2**40],
        [],
        None,
        "",
        "0",
        "ooooooo",
        "not an rle!",
        "\u2603",
    ],
)
def test_an_rle_of_wrong_counts(coco: CocoFolder, counts: Any):
    bad_instance(coco, "rle counts", segmentation={"size": list(SIZE), "counts": counts})


def test_a_mask_without_a_pixel(coco: CocoFolder):
    bad_instance(coco, "empty mask", segmentation={"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]})


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[100, 100, 110, 100, 110, 110]],
        [[5, 5, 5, 5, 5, 5]],
    ],
)
def test_a_degenerate_polygon(coco: CocoFolder, polygons: list):
    bad_instance(coco, "degenerate polygon", segmentation=polygons)


@pytest.mark.parametrize("corner", [math.nan, math.inf, 1e30, "4", None])
def test_a_polygon_with_a_corner_that_is_no_place(coco: CocoFolder, corner: Any):
    bad_instance(coco, "bad polygon", segmentation=[[4, 4, 12, 4, 12, corner]])


@pytest.mark.parametrize("segmentation", [None, "polygon", 5])
def test_an_annotation_without_segmentation(coco: CocoFolder, segmentation: Any):
    bad_instance(coco, "no segmentation", segmentation=segmentation)


def test_a_phrase_that_lost_all_its_instances_is_neither_positive_nor_negative(coco: CocoFolder):
    coco.instance(coco.image(), 1, bbox=[0, 0, -1, 5])
    coco.prepare()
    (row,) = coco.rows()
    assert {prompt.phrase for prompt in row.prompts} == {"dog", "traffic light"}
