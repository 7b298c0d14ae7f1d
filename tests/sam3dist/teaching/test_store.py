"""What a store is of, and that nothing else is ever read for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sam3dist.data.rejects import Reject
from sam3dist.data.rows import Row
from sam3dist.data.shards import RowGroup
from sam3dist.errors import DataError
from sam3dist.teaching.store import (
    MANIFEST,
    STORE,
    AnswerStore,
    AnswerWriter,
    Identity,
    RowAnswers,
    answers_path,
    finished,
    open_answers,
    write_identity,
    write_json,
)

WHOLE = Identity("a" * 64, "auto", 96, "b" * 64, ("vision", "encoder"))
ROWS = [RowAnswers(5, None, {"vision": b"v"}, ()), RowAnswers(6, "corrupt image", {}, ())]
GROUP = RowGroup("shard-00000.parquet", 0, 2)


def complete(folder: Path, identity: Identity = WHOLE) -> Path:
    """A store of one small file."""
    folder.mkdir(exist_ok=True)
    write_identity(folder, identity)
    writer = AnswerWriter(answers_path(folder, GROUP.path))
    writer.write(ROWS)
    said = writer.close({"rows": 2})
    write_json(folder / MANIFEST, {"shards": [said]})
    return folder


def row(image_id: int) -> Row:
    return Row(b"", image_id, f"{image_id}.jpg", 1, 1, ())


def test_a_store_of_the_same_is_opened(tmp_path: Path):
    store = open_answers(complete(tmp_path), replace(WHOLE, features=("encoder",)), "embedded")
    assert store == AnswerStore(tmp_path, WHOLE, ("encoder",))
    first, second = store.answered(GROUP, [row(5), row(6)])
    assert first == row(5)
    assert isinstance(second, Reject)
    assert "corrupt image" in second.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"teacher": "c" * 64}, "holds the answers of another teacher (aaaaaaaaaaaa) than mine (cccccccccccc)"),
        ({"data": "c" * 64}, "answers other shards (content bbbbbbbbbbbb) than data.train (content cccccccccccc)"),
        ({"image_size": 1008}, "holds answers at 96 pixels, this teacher sees 1008"),
        ({"geometry_token": True}, "holds answers without the geometry token, this run asks with the geometry token"),
        ({"codec": 99}, "of the codec, this program reads 99"),
        ({"precision": "fp32"}, "holds answers in auto, not fp32"),
    ],
)
def test_a_store_of_anything_else_is_refused_with_the_reason(tmp_path: Path, change: dict, reason: str):
    with pytest.raises(DataError) as caught:
        open_answers(complete(tmp_path), replace(WHOLE, **change), "mine")
    assert reason in str(caught.value)
    assert "sam3dist teach" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_that_were_not_stored_are_missed(tmp_path: Path):
    folder = complete(tmp_path, replace(WHOLE, features=("vision",)))
    with pytest.raises(DataError, match="no encoder features"):
        open_answers(folder, WHOLE, "embedded")
    assert open_answers(folder, replace(WHOLE, features=()), "embedded").features == ()


def test_answers_in_any_precision_serve_who_asks_for_none(tmp_path: Path):
    assert open_answers(complete(tmp_path, replace(WHOLE, precision="bf16")), WHOLE, "embedded")


def test_a_store_from_before_there_was_a_geometry_token_holds_answers_without(tmp_path: Path):
    known = json.loads((complete(tmp_path) / STORE).read_text())
    del known["geometry_token"]
    write_json(tmp_path / STORE, known)
    assert open_answers(tmp_path, WHOLE, "embedded")
    with pytest.raises(DataError, match="holds answers without the geometry token"):
        open_answers(tmp_path, replace(WHOLE, geometry_token=True), "facebook/sam3")


def test_an_unfinished_store_is_not_read(tmp_path: Path):
    with pytest.raises(DataError, match="no stored answers in it; write them with `sam3dist teach`"):
        open_answers(tmp_path, WHOLE, "embedded")
    (complete(tmp_path) / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"not complete; run the same `sam3dist teach` again"):
        open_answers(tmp_path, WHOLE, "embedded")


def test_a_store_with_a_file_cut_short_is_not_read(tmp_path: Path):
    path = answers_path(complete(tmp_path), GROUP.path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged or gone"):
        open_answers(tmp_path, WHOLE, "embedded")
    assert finished(path) is None


@pytest.mark.parametrize("name", [STORE, MANIFEST])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_spoilt_file_is_named(tmp_path: Path, name: str, content: str):
    (complete(tmp_path) / name).write_text(content)
    with pytest.raises(DataError, match=name):
        open_answers(tmp_path, WHOLE, "embedded")


def test_bytes_that_changed_on_disk_are_set_aside_and_not_believed(tmp_path: Path):
    path = answers_path(complete(tmp_path), GROUP.path)
    data = bytearray(path.read_bytes())
    place = data.index(b"corrupt image")
    data[place] ^= 1
    path.write_bytes(bytes(data))
    store = open_answers(tmp_path, WHOLE, "embedded")
    with pytest.raises(Reject, match="corrupt shard"):
        store.answered(GROUP, [row(5), row(6)])


def test_answers_to_other_rows_are_not_taken_for_these(tmp_path: Path):
    store = open_answers(complete(tmp_path), WHOLE, "embedded")
    with pytest.raises(Reject, match="foreign answers"):
        store.answered(GROUP, [row(5), row(7)])
    with pytest.raises(Reject, match="corrupt answers"):
        store.answered(replace(GROUP, rows=3), [row(5), row(6), row(7)])


def test_a_file_is_finished_only_with_its_counts_and_checksum(tmp_path: Path):
    path = answers_path(complete(tmp_path), GROUP.path)
    said = json.loads(path.with_suffix(".json").read_text())
    assert finished(path) == said
    assert said["bytes"] == path.stat().st_size
    path.with_suffix(".json").unlink()
    assert finished(path) is None
