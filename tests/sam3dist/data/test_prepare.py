from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sam3dist.data import json_stream
from sam3dist.data.masks import decode_rle
from sam3dist.data.prepare import HASHED, PREPARED, READ, PrepareSettings, prepare
from sam3dist.data.rows import Row
from sam3dist.data.shards import open_shards
from sam3dist.errors import DataError
from tests.sam3dist.data.coco_folder import SIZE, CocoFolder


def phrases(row: Row, present: bool) -> list[str]:
    return [prompt.phrase for prompt in row.prompts if prompt.present == present]


# --- what becomes a phrase


def test_plain_coco_takes_every_absent_category_as_a_negative(coco: CocoFolder):
    image = coco.image()
    coco.instance(image, 1)
    coco.instance(image, 1)
    coco.instance(image, 3)
    manifest = coco.prepare()
    (row,) = coco.rows()
    assert phrases(row, True) == ["cat", "traffic light"]
    assert phrases(row, False) == ["dog"]
    assert [len(prompt.instances) for prompt in row.prompts] == [2, 1, 0]
    counts = {name: manifest[name] for name in ("rows", "phrases", "positives", "negatives", "instances")}
    assert counts == {"rows": 1, "phrases": 3, "positives": 2, "negatives": 1, "instances": 3}


def test_absence_says_nothing_where_annotation_is_not_exhaustive(coco: CocoFolder):
    coco.instance(coco.image(), 1)
    coco.prepare(exhaustive=False)
    (row,) = coco.rows()
    assert phrases(row, False) == []
    assert not row.prompts[0].exhaustive


def test_given_negatives_are_the_only_ones(coco: CocoFolder):
    coco.instance(coco.image(neg_category_ids=[3]), 1)
    coco.prepare()
    assert phrases(coco.rows()[0], False) == ["traffic light"]


def test_a_given_negative_that_is_present_is_no_negative(coco: CocoFolder):
    coco.instance(coco.image(neg_category_ids=[1, 3]), 1)
    assert coco.prepare()["rejected"] == {"negative is present": 1}
    assert phrases(coco.rows()[0], False) == ["traffic light"]


def test_only_what_a_source_annotates_exhaustively_is_absent(coco: CocoFolder):
    coco.head["info"] = {"sources": {"zoo": {"exhaustive_category_ids": [1, 2]}}}
    for source in ("zoo", "street"):
        image = coco.image(source=source)
        coco.instance(image, 1)
        coco.instance(image, 3)
    coco.prepare()
    zoo, street = coco.rows()
    assert phrases(zoo, False) == ["dog"]
    assert phrases(street, False) == []
    assert {prompt.phrase: prompt.exhaustive for prompt in zoo.prompts} == {
        "cat": True,
        "traffic light": False,
        "dog": True,
    }


def test_partly_annotated_categories_are_neither_exhaustive_nor_negative(coco: CocoFolder):
    coco.instance(coco.image(not_exhaustive_category_ids=[1], dropped_tiny={"2": 4}), 1)
    coco.prepare()
    (row,) = coco.rows()
    assert not row.prompts[0].exhaustive
    assert phrases(row, False) == ["traffic light"]


def test_a_crowd_is_a_region_to_ignore_and_no_instance(coco: CocoFolder):
    image = coco.image()
    coco.instance(image, 1)
    coco.instance(image, 1, iscrowd=1, segmentation={"size": list(SIZE), "counts": [0, 24, 744]})
    coco.instance(image, 1, iscrowd=1, segmentation={"size": list(SIZE), "counts": [48, 24, 696]})
    coco.instance(image, 2, iscrowd=1)  # a crowd alone leaves nothing to learn a mask from
    coco.prepare()
    (row,) = coco.rows()
    cat = row.prompts[0]
    assert len(cat.instances) == 1
    assert cat.exhaustive
    assert cat.ignore is not None
    expected = np.zeros(SIZE, bool)
    expected[:, [0, 2]] = True
    assert np.array_equal(decode_rle(row.rle(cat.ignore)), expected)
    assert phrases(row, True) == ["cat"]
    assert phrases(row, False) == ["traffic light"]


def test_categories_of_one_cleaned_name_are_one_phrase(coco: CocoFolder):
    coco.head["categories"] = [{"id": 1, "name": "bow_(weapon)"}, {"id": 2, "name": "Bow_(ribbon)"}]
    image = coco.image()
    coco.instance(image, 1)
    coco.instance(image, 2)
    coco.instance(coco.image(), 1)
    coco.prepare()
    first, second = coco.rows()
    assert [(prompt.phrase, len(prompt.instances)) for prompt in first.prompts] == [("bow", 2)]
    assert phrases(second, False) == []


def test_negatives_are_capped_with_the_most_confusable_kept(coco: CocoFolder):
    names = ["knife", "fork", "car", "butter knife", "boat", "tree"]
    coco.head["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    coco.instance(coco.image(), 1)
    for _ in range(3):
        both = coco.image()
        coco.instance(both, 1)
        coco.instance(both, 2)
    coco.prepare(max_negatives_per_image=2)
    assert phrases(coco.rows()[0], False) == ["butter knife", "fork"]


def test_pairs_of_one_file_become_one_row(coco: CocoFolder):
    first = coco.pair("striped  cat ", "b.png")
    coco.pair("cat on the left", "a.png", is_instance_exhaustive=0)
    coco.instance(coco.pair("Dog", "b.png"), bbox=[0.1, 0.1, 0.5, 0.5])
    coco.pair("red cat", "b.png")
    coco.instance(first)
    coco.annotations[0]["iscrowd"], coco.annotations[1]["category_id"] = 0, None
    del coco.annotations[1]["category_id"]
    manifest = coco.prepare()
    assert manifest["rejected"] == {}
    assert manifest["format"] == "saco"
    (row,) = coco.rows()  # nothing is known about a.png: no mask, and not exhaustive
    assert (row.file_name, row.image_id) == ("b.png", 1)
    assert phrases(row, True) == ["striped cat", "Dog"]
    assert phrases(row, False) == ["red cat"]


def test_max_side_shrinks_images_with_their_masks(coco: CocoFolder):
    image = coco.image()
    coco.instance(image, segmentation=[[0, 0, 16, 0, 16, 24, 0, 24]])
    coco.instance(image, segmentation=[[20, 20, 21, 20, 21, 21, 20, 21]])  # one pixel: gone
    coco.prepare(max_side=16)
    (row,) = coco.rows()
    assert (row.height, row.width) == (12, 16)
    cat = row.prompts[0]
    assert [instance.box for instance in cat.instances] == [(0, 0, 8, 12)]
    assert not cat.exhaustive


# --- the directory


def many(coco: CocoFolder, images: int) -> CocoFolder:
    for index in range(images):
        image = coco.image()
        coco.instance(image, 1 + index % 3)
        coco.instance(image, 1 + index % 2)
    return coco


def test_the_same_input_gives_the_same_bytes(coco: CocoFolder):
    many(coco, 11)
    source = coco.write()
    made = [
        prepare(source, coco.images_dir, coco.root / name, PrepareSettings(rows_per_shard=4, threads=threads))
        for name, threads in (("one", 1), ("two", 4))
    ]
    assert made[0] == made[1]
    for shard in made[0]["shards"]:
        assert (coco.root / "one" / shard["file"]).read_bytes() == (coco.root / "two" / shard["file"]).read_bytes()
    assert [shard["row_groups"] for shard in made[0]["shards"]] == [[4], [4], [3]]


def test_other_input_gives_another_content_hash(coco: CocoFolder, tmp_path: Path):
    other = many(CocoFolder(tmp_path / "other"), 5)
    other.annotations[0]["category_id"] = 2
    assert many(coco, 5).prepare()["content_sha256"] != other.prepare()["content_sha256"]


def test_a_finished_directory_is_left_as_it_is(coco: CocoFolder):
    many(coco, 3)
    manifest = coco.prepare()
    times = {path: path.stat().st_mtime_ns for path in coco.out.iterdir()}
    again = coco.prepare()
    assert again == manifest | {"unchanged": True}
    assert times == {path: path.stat().st_mtime_ns for path in coco.out.iterdir()}


def test_a_directory_of_other_shards_is_refused(coco: CocoFolder):
    many(coco, 3).prepare()
    with pytest.raises(DataError, match="other annotations or settings"):
        coco.prepare(max_negatives_per_image=1)
    many(coco, 1)
    with pytest.raises(DataError, match="other annotations or settings"):
        coco.prepare()


def test_a_directory_of_something_else_is_refused(coco: CocoFolder):
    coco.out.mkdir()
    (coco.out / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"holds 'thesis.tex'"):
        many(coco, 1).prepare()


def test_what_an_interrupted_run_left_is_replaced(coco: CocoFolder):
    (coco.out / "prepare-x.tmp").mkdir(parents=True)
    (coco.out / "prepare-x.tmp" / "shard-00000.parquet.tmp").write_bytes(b"half")
    (coco.out / "shard-00007.parquet").write_bytes(b"moved before the manifest")
    manifest = many(coco, 3).prepare()
    names = {path.name for path in coco.out.iterdir()}
    assert names == {"manifest.json", "rejected.jsonl", *(shard["file"] for shard in manifest["shards"])}


def test_an_interruption_leaves_no_manifest(coco: CocoFolder):
    def interrupt(part: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    many(coco, 4)
    with pytest.raises(KeyboardInterrupt):
        prepare(coco.write(), coco.images_dir, coco.out, progress=interrupt)
    assert list(coco.out.iterdir()) == []


def test_progress_counts_every_image(coco: CocoFolder):
    calls: list[tuple[str, int, int]] = []
    many(coco, 3).image(b"")
    prepare(
        coco.write(),
        coco.images_dir,
        coco.out,
        PrepareSettings(max_rejected_share=1),
        lambda *call: calls.append(call),
    )
    assert calls == [(PREPARED, done, 4) for done in (1, 2, 3, 4)]


def test_progress_counts_the_megabytes_of_a_large_annotation_file(coco: CocoFolder):
    calls: list[tuple[str, int, int]] = []
    many(coco, 1).head["info"] = {"padding": ["x" * 100_000] * 170}
    prepare(coco.write(), coco.images_dir, coco.out, progress=lambda *call: calls.append(call))
    for part in (HASHED, READ):
        counted = [done for what, done, total in calls if (what, total) == (part, 17)]
        assert counted == sorted(set(counted))
        assert counted[-1] == 17
    assert [what for what, _, _ in calls] == sorted((what for what, _, _ in calls), key=(HASHED, READ, PREPARED).index)
    assert calls[-1] == (PREPARED, 1, 1)


def test_the_manifest_names_no_directory_of_this_machine(coco: CocoFolder):
    many(coco, 2).prepare()
    text = (coco.out / "manifest.json").read_text()
    assert str(coco.root) not in text
    assert json.loads(text)["source"]["annotations"] == "instances.json"


def test_images_lie_uncompressed_in_small_row_groups(coco: CocoFolder):
    many(coco, 5).prepare(rows_per_group=2)
    groups = open_shards(coco.out).row_groups
    assert [group.rows for group in groups] == [2, 2, 1]
    meta = pq.ParquetFile(groups[0].path).metadata
    assert [meta.row_group(i).num_rows for i in range(3)] == [2, 2, 1]
    columns = {meta.row_group(0).column(i).path_in_schema: meta.row_group(0).column(i) for i in range(meta.num_columns)}
    assert columns["image"].compression == "UNCOMPRESSED"
    assert {column.compression for name, column in columns.items() if name != "image"} == {"ZSTD"}


def test_memory_does_not_grow_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ten times the images and annotations in the same megabyte; loaded whole, the JSON alone would take more."""
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 1 << 14)  # below the smaller file, so that both fill it

    def peak(images: int) -> int:
        coco = CocoFolder(tmp_path / str(images))
        picture = coco.images_dir / "0001.png"
        for index in range(images):
            number = coco.image(save=index == 0)
            coco.images[-1]["file_name"] = picture.name
            for _ in range(4):
                coco.instance(number, segmentation=[[4, 4, 12, 4, 12, 12, *(4, 12) * 99]])
        source = coco.write()
        coco.images.clear()
        coco.annotations.clear()
        tracemalloc.start()
        prepare(source, coco.images_dir, coco.out, PrepareSettings(rows_per_group=8, threads=1))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(8)  # what imports and caches take once
    small, large = peak(30), peak(300)
    assert (tmp_path / "300" / "instances.json").stat().st_size > 1_000_000
    assert large < 1.1 * small + 100_000, (small, large)
