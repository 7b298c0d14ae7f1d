"""The shared photographs: real annotations, compared with pycocotools and with the counts their README states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from sam3dist.data.masks import decode_rle
from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.rows import Row
from sam3dist.data.segmentation import annotation_rle
from sam3dist.data.shards import open_shards, read_rows


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> Path:
    return shared_data / "photos"


def rows_of(photos: Path, annotations: str, out: Path, **settings: int) -> tuple[dict, list[Row]]:
    manifest = prepare(photos / annotations, photos / "images", out, PrepareSettings(**settings))
    return manifest, [row for group in open_shards(out).row_groups for row in read_rows(group)]


@pytest.mark.parametrize(
    ("annotations", "rows", "positives", "negatives", "instances"),
    [
        # Annotations less crowds: 3017 - 10 and 782 - 2.
        ("instances_train.json", 268, 736, 1177, 3007),
        ("saco_train.json", 268, 736, 1177, 3007),
        ("instances_val.json", 90, 234, 394, 780),
        ("saco_val.json", 90, 234, 394, 780),
    ],
)
def test_counts_are_those_of_the_readme(
    photos: Path, tmp_path: Path, annotations: str, rows: int, positives: int, negatives: int, instances: int
):
    manifest, read = rows_of(photos, annotations, tmp_path / "out")
    assert manifest["rejected"] == {}
    assert manifest["rows"] == len(read) == rows
    assert manifest["positives"] == sum(prompt.present for row in read for prompt in row.prompts) == positives
    assert manifest["negatives"] == sum(not prompt.present for row in read for prompt in row.prompts) == negatives
    assert manifest["instances"] == sum(len(p.instances) for row in read for p in row.prompts) == instances


def test_every_mask_is_that_of_pycocotools(photos: Path):
    reference = COCO(photos / "instances_val.json")
    assert len(reference.anns) == 782
    for annotation in reference.anns.values():
        image = reference.imgs[annotation["image_id"]]
        rle = annotation_rle(annotation, image["height"], image["width"])
        assert np.array_equal(decode_rle(rle), reference.annToMask(annotation) == 1)


def test_stored_masks_boxes_and_crowds_are_those_of_the_annotations(photos: Path, tmp_path: Path):
    reference = COCO(photos / "instances_val.json")
    _, read = rows_of(photos, "instances_val.json", tmp_path / "out")
    ids = {category["name"]: category["id"] for category in reference.cats.values()}
    for row in read:
        for prompt in row.prompts:
            found = reference.loadAnns(reference.getAnnIds([row.image_id], [ids[prompt.phrase]], iscrowd=False))
            assert prompt.present == bool(found)
            assert len(prompt.instances) == len(found)
            for instance, annotation in zip(prompt.instances, found, strict=True):
                assert np.array_equal(decode_rle(row.rle(instance.counts)), reference.annToMask(annotation) == 1)
                left, top, right, bottom = instance.box
                assert [left, top, right - left, bottom - top] == annotation["bbox"]
                assert instance.area == annotation["area"]
            crowd = reference.loadAnns(reference.getAnnIds([row.image_id], [ids[prompt.phrase]], iscrowd=True))
            assert (prompt.ignore is not None) == bool(crowd)


@pytest.mark.parametrize("settings", [{}, {"max_negatives_per_image": 2}])
def test_no_negative_is_present_in_its_image(photos: Path, tmp_path: Path, settings: dict):
    content = json.loads((photos / "instances_train.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    present: dict[int, set[str]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        present[annotation["image_id"]].add(names[annotation["category_id"]])
    _, read = rows_of(photos, "instances_train.json", tmp_path / "out", **settings)
    for row in read:
        negatives = {prompt.phrase for prompt in row.prompts if not prompt.present}
        assert not negatives & present[row.image_id]
        assert len(negatives) <= settings.get("max_negatives_per_image", 32)


def test_negatives_from_exhaustive_sources_contain_all_that_people_verified(photos: Path, tmp_path: Path):
    """Without the verified lists, absence is derived per source; it must not contradict them within the source."""
    content = json.loads((photos / "instances_val.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    exhaustive = {k: set(v["exhaustive_category_ids"]) for k, v in content["info"]["sources"].items()}
    verified = {}
    for image in content["images"]:
        given = set(image.pop("neg_category_ids")) & exhaustive[image["source"]]
        verified[image["id"]] = {names[category] for category in given}
    (tmp_path / "derived.json").write_text(json.dumps(content))
    settings = PrepareSettings(max_negatives_per_image=1000)
    prepare(tmp_path / "derived.json", photos / "images", tmp_path / "out", settings)
    for group in open_shards(tmp_path / "out").row_groups:
        for row in read_rows(group):
            assert verified[row.image_id] <= {prompt.phrase for prompt in row.prompts if not prompt.present}


def test_both_formats_of_the_same_photographs_give_the_same_answers(photos: Path, tmp_path: Path):
    def answers(annotations: str) -> dict[tuple[str, str], list]:
        _, read = rows_of(photos, annotations, tmp_path / annotations)
        return {
            (row.file_name, prompt.phrase): sorted(instance.counts.tolist() for instance in prompt.instances)
            for row in read
            for prompt in row.prompts
        }

    assert answers("instances_val.json") == answers("saco_val.json")
