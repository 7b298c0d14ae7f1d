"""Records and phrases that cannot be used are set aside, each under its own reason."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sam3dist.data.coco_folder import CocoFolder, only_reason


# --- records
@pytest.mark.parametrize("size", [{"height": 0}, {"width": -4}, {"width": "32"}, {"height": None}, {"height": 24.0}])
def test_an_image_whose_annotated_size_is_no_size(coco: CocoFolder, size: dict):
    coco.image(**size)
    only_reason(coco, "bad size")


def test_a_duplicate_image_id(coco: CocoFolder):
    coco.images.append({"id": 2, "file_name": "other.png", "height": 9, "width": 9})
    coco.instance(coco.image())
    coco.images.reverse()  # the good one comes first and stays
    assert coco.prepare()["rejected"] == {"duplicate image id": 1}
    assert coco.rows()[0].file_name == "0002.png"


def test_a_duplicate_annotation_id(coco: CocoFolder):
    image = coco.image()
    coco.instance(image, 1, id=7)
    coco.instance(image, 1, id=7)
    manifest = coco.prepare()
    assert manifest["rejected"] == {"duplicate annotation id": 1}
    assert manifest["instances"] == 1
    assert not coco.rows()[0].prompts[0].exhaustive


def test_a_dangling_image_id(coco: CocoFolder):
    coco.instance(99)
    only_reason(coco, "dangling image id")


def test_an_unknown_category_id(coco: CocoFolder):
    coco.instance(coco.image(), 77)
    coco.head["categories"] = coco.head["categories"][:1]
    manifest = coco.prepare()
    assert manifest["rejected"] == {"unknown category id": 1}
    assert (manifest["instances"], manifest["negatives"]) == (0, 1)


@pytest.mark.parametrize("value", [None, "1", 1.5, True, 2**80, [1]])
@pytest.mark.parametrize("key", ["id", "image_id"])
def test_an_id_that_is_no_integer(coco: CocoFolder, key: str, value: Any):
    coco.annotations.append({"id": 900, "image_id": 1, "category_id": 1} | {key: value})
    only_reason(coco, "bad id")


@pytest.mark.parametrize("record", [None, 5, "image", [1]])
def test_a_record_that_is_no_object(coco: CocoFolder, record: Any):
    coco.annotations.append(record)
    only_reason(coco, "not a record")


@pytest.mark.parametrize("name", [None, "", "  ", 5])
def test_a_nameless_category(coco: CocoFolder, name: Any):
    coco.head["categories"].append({"id": 9, "name": name})
    only_reason(coco, "nameless category")


def test_a_duplicate_category_id(coco: CocoFolder):
    coco.head["categories"].append({"id": 1, "name": "lion"})
    only_reason(coco, "duplicate category id")


# --- phrases of SA-Co pairs
@pytest.mark.parametrize(
    ("phrase", "reason"),
    [
        ("", "empty phrase"),
        (" \t\n", "empty phrase"),
        (None, "empty phrase"),
        (["cat"], "empty phrase"),
        ("word " * 1000, "huge phrase"),
        ("half a pair \ud83d", "bad characters"),
        ("bell \x07", "bad characters"),
        ("CAT", "duplicate phrase"),
    ],
)
def test_a_phrase_that_is_none(coco: CocoFolder, phrase: Any, reason: str):
    coco.instance(coco.pair("cat", "a.png"), bbox=[0.1, 0.1, 0.3, 0.3])
    coco.pair(phrase, "a.png")
    manifest = coco.prepare()
    assert manifest["rejected"] == {reason: 1}
    assert (manifest["positives"], manifest["negatives"]) == (1, 0)


def test_pairs_that_disagree_about_the_size_of_their_image(coco: CocoFolder):
    coco.instance(coco.pair("cat", "a.png"))
    coco.pair("dog", "a.png", width=77)
    assert coco.prepare()["rejected"] == {"bad size": 1}


def test_a_duplicate_pair_id(coco: CocoFolder):
    coco.instance(coco.pair("cat", "a.png"))
    coco.pair("dog", "a.png", id=1)
    assert coco.prepare()["rejected"] == {"duplicate pair id": 1}
