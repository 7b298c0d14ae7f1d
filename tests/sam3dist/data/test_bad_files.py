"""Whole inputs that cannot be used end in one line that names the file or the setting."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest

from sam3dist.data.masks import decode_rle, encode_mask
from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.errors import ConfigError, DataError
from tests.sam3dist.data.coco_folder import SIZE, CocoFolder


def test_more_rejects_than_allowed_fail_with_the_counts(coco: CocoFolder):
    for _ in range(8):
        coco.instance(coco.image())
    coco.instance(coco.image(b""))
    coco.instance(coco.image(save=False))
    with pytest.raises(DataError, match=r"max_rejected_share=0.1: 2 of 10 image records .*corrupt image 1") as error:
        coco.prepare(max_rejected_share=0.1)
    assert "missing image 1" in str(error.value)
    assert len(coco.rejected()) == 2
    assert not (coco.out / "manifest.json").exists()
    assert not list(coco.out.glob("*.parquet"))
    assert coco.prepare(max_rejected_share=0.2)["rows"] == 8


def test_rejected_annotations_have_a_limit_of_their_own(coco: CocoFolder):
    image = coco.image()
    for index in range(10):
        coco.instance(image, bbox=[0, 0, 4, 4] if index else [0, 0, -4, 4])
    with pytest.raises(DataError, match="1 of 10 annotation records"):
        coco.prepare(max_rejected_share=0.05)


def test_no_usable_image_at_all_fails(coco: CocoFolder):
    coco.image(b"")
    with pytest.raises(DataError, match="not one image could be used"):
        coco.prepare()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends in the middle"),
        (b'{"images": []}', "no images"),
        (b'{"annotations": 5, "images": {}}', "no .\\["),
        (b'{"images": [{"file_name": "\xff\xfe.png"}]}', "not UTF-8"),
        (b'{"images": [', "not JSON|ends"),
    ],
)
def test_an_annotation_file_that_is_none(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "bad.json").write_bytes(content)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=words) as error:
        prepare(tmp_path / "bad.json", tmp_path / "images", tmp_path / "out")
    assert "\n" not in str(error.value)


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    math.nan,
    "",
    "x",
    "\ud800",
    [],
    [None],
    [[]],
    {},
    {"size": 5, "counts": []},
]


@pytest.mark.parametrize("style", ["coco", "saco"])
def test_no_odd_value_anywhere_ends_in_a_traceback(tmp_path: Path, style: str):
    rng = np.random.default_rng(0)
    for trial in range(60):
        folder = CocoFolder(tmp_path / str(trial))
        for number in (1, 2, 3):
            image = folder.image() if style == "coco" else folder.pair(f"thing {number}", f"{number % 2}.png")
            folder.instance(image)
            folder.instance(image, segmentation={"size": list(SIZE), "counts": [5, 5, 758]})
        folder.head["info"] = {"sources": {"zoo": {"exhaustive_category_ids": [1]}}}
        records = [*folder.images, *folder.annotations, *folder.head["categories"]]
        for record in rng.choice(np.array(records, dtype=object), 3):
            odd = ODD_VALUES[rng.integers(len(ODD_VALUES))]
            extra = ["source", "neg_category_ids", "dropped_tiny", "not_exhaustive_category_ids", "supercategory"]
            record[str(rng.choice([*record, *extra]))] = odd
        for key in rng.choice(["categories", "info", "licenses"], rng.integers(2)):
            folder.head[str(key)] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
        with contextlib.suppress(DataError):  # a person can mend it; anything else is our mistake
            assert folder.prepare()["rows"] == len(folder.rows())


def test_missing_inputs_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"a.json: no such file"):
        prepare(tmp_path / "a.json", tmp_path, tmp_path / "out")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="photos: no such directory"):
        prepare(tmp_path / "a.json", tmp_path / "photos", tmp_path / "out")


@pytest.mark.parametrize("setting", [{"threads": 0}, {"max_rejected_share": 1.5}, {"max_negatives_per_image": -1}])
def test_settings_out_of_range_are_named(setting: dict):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        PrepareSettings(**setting)


def test_masks_survive_in_every_notation(coco: CocoFolder):
    from pycocotools import mask as coco_mask

    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 5:20] = mask[12:20, 1:4] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    image = coco.image()
    coco.instance(image, 1, segmentation={"size": list(SIZE), "counts": packed["counts"].decode()})
    coco.instance(image, 1, segmentation={"size": list(SIZE), "counts": encode_mask(mask).counts.tolist()})
    coco.instance(image, 1, segmentation=[[5, 3, 20, 3, 20, 9, 5, 9], [1, 12, 4, 12, 4, 20, 1, 20], [9, 9, 9, 9]])
    coco.prepare()
    (row,) = coco.rows()
    for instance in row.prompts[0].instances:
        assert np.array_equal(decode_rle(row.rle(instance.counts)), mask)
        assert (instance.area, instance.box) == (mask.sum(), (1, 3, 20, 20))
