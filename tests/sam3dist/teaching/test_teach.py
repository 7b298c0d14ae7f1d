"""A shard's answers: equal to the teacher's own, resumed, and honest about rows that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from sam3dist.answers import decoded, imitable
from sam3dist.config.distill import DataConfig, DistillationConfig, EvalConfig
from sam3dist.data.batches import follow
from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.rejects import Reject
from sam3dist.data.samples.write import scene_shards, write_scenes
from sam3dist.data.shards import Shards, open_shards, read_rows, split_row_groups
from sam3dist.errors import DataError, NonFiniteError
from sam3dist.losses import distillation_loss
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.teaching.store import AnswerStore, Identity, answers_path
from sam3dist.teaching.teach import teach_shard
from sam3dist.types import PromptBatch, SegOutputs

FEATURES = ("vision", "encoder")
DATA = DataConfig(images_per_batch=3, prompts_per_image=3, decode_threads=1)
BATCH = EvalConfig(images_per_batch=4, prompts_per_batch=7)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Twelve scenes in two shards of two row groups."""
    folder = tmp_path_factory.mktemp("scenes")
    prepare(
        *write_scenes(folder, 12, seed=3, side=112), folder / "out", PrepareSettings(rows_per_group=4, rows_per_shard=7)
    )
    return open_shards(folder / "out")


def surer(teacher: Segmenter) -> Callable[[PromptBatch], SegOutputs]:
    """A tiny random network keeps no query; this one's answers are spread out until it keeps some of most prompts."""

    def ask(batch: PromptBatch) -> SegOutputs:
        said = segment(teacher, batch)
        spread = 40 * (said.query_logits - said.query_logits.mean(1, keepdim=True))
        return replace(said, query_logits=spread, presence_logits=said.presence_logits + 3)

    return ask


def taught(shards: Shards, ask: Callable[[PromptBatch], SegOutputs], folder: Path, features=FEATURES) -> list[dict]:
    files = sorted({group.path for group in shards.row_groups})
    return [
        teach_shard(
            [group for group in shards.row_groups if group.path == file],
            answers_path(folder, Path(file).name),
            ask,
            112,
            features,
            DATA,
            BATCH,
        )
        for file in files
    ]


def store_of(shards: Shards, folder: Path, features=FEATURES) -> AnswerStore:
    return AnswerStore(folder, Identity("t", "fp32", 112, shards.content_hash, FEATURES), features)


def test_a_step_on_stored_answers_has_the_loss_of_a_step_with_the_teacher(
    shards: Shards, tiny_teacher: Segmenter, tmp_path: Path
):
    ask = surer(tiny_teacher)
    with torch.no_grad():
        said = taught(shards, ask, tmp_path)
    assert [shard["rejected"] for shard in said] == [{}] * len(said)
    assert sum(shard["masks"] for shard in said) > 50
    config = DistillationConfig(alpha=0.0, temperature=3.0)
    for batch in follow([(0, shards.row_groups)], DATA, 112, seed=1, answers=store_of(shards, tmp_path)):
        assert batch.answers is not None
        with torch.no_grad():
            raw = ask(batch)
            student = replace(raw, query_logits=raw.query_logits - 1, mask_logits=0.5 * raw.mask_logits)
            features = {name: 0.9 * value for name, value in raw.features.items()}
            student = replace(student, features=features)
            online = distillation_loss(student, batch, imitable(raw, FEATURES), config)
            stored = distillation_loss(student, batch, decoded(batch.answers, FEATURES), config)
        assert online.distillation > 0.3
        for name, value in online.parts.items():
            torch.testing.assert_close(stored.parts[name], value, rtol=0.02, atol=2e-4, msg=name)
        torch.testing.assert_close(stored.total, online.total, rtol=0.01, atol=0)


def test_mirrored_batches_have_mirrored_answers(shards: Shards, tiny_teacher: Segmenter, tmp_path: Path):
    with torch.no_grad():
        taught(shards, surer(tiny_teacher), tmp_path)
    store = store_of(shards, tmp_path)
    settings = DATA.model_copy(update={"horizontal_flip": True})
    for seed in range(20):
        flipped = next(follow([(0, shards.row_groups)], settings, 112, seed=seed, answers=store))
        straight = next(follow([(0, shards.row_groups)], DATA, 112, seed=seed, answers=store))
        for prompt, image in enumerate(flipped.image_of_prompt):
            mirrored = not torch.equal(flipped.images[image], straight.images[image])
            said = decoded(flipped.answers).semantic_logits[prompt]
            # A mirrored image draws as a straight one does, so the phrases are the same.
            assert flipped.prompts[prompt] == straight.prompts[prompt]
            expected = decoded(straight.answers).semantic_logits[prompt]
            assert torch.equal(said, expected.flip(1) if mirrored else expected)


def test_any_share_of_the_rows_finds_its_answers(shards: Shards, tiny_teacher: Segmenter, tmp_path: Path):
    with torch.no_grad():
        taught(shards, surer(tiny_teacher), tmp_path)
    store = store_of(shards, tmp_path, ())
    for rank in range(3):
        for group in split_row_groups(shards.row_groups, rank, 3):
            rows = read_rows(group)
            for row, answered in zip(rows, store.answered(group, rows), strict=True):
                assert answered.image_id == row.image_id
                assert [set(prompt.taught) for prompt in answered.prompts] == [{"answer"}] * len(row.prompts)


def test_a_finished_shard_is_left_alone_and_a_damaged_one_made_again(
    shards: Shards, tiny_teacher: Segmenter, tmp_path: Path
):
    ask = surer(tiny_teacher)
    with torch.no_grad():
        first = taught(shards, ask, tmp_path)
        file = tmp_path / first[0]["file"]
        whole = file.read_bytes()
        assert first[0]["recomputed"]

        def never(batch: PromptBatch) -> SegOutputs:
            raise AssertionError("a finished shard asks nothing")

        again = taught(shards, never, tmp_path)
        assert [shard["recomputed"] for shard in again] == [False] * len(again)
        asked = {"recomputed": True, "asking_seconds": first[0]["asking_seconds"]}
        assert {**again[0], **asked} == first[0]
        assert first[0]["asking_seconds"] > 0
        assert again[0]["asking_seconds"] == 0
        file.write_bytes(whole[:-9] + b"\0" * 9)
        assert taught(shards, ask, tmp_path)[0]["recomputed"]
    assert file.read_bytes() == whole
    assert not list(tmp_path.glob("*.tmp"))


def test_an_error_on_the_way_leaves_nothing_that_counts(shards: Shards, tiny_teacher: Segmenter, tmp_path: Path):
    asked = 0

    def breaks(batch: PromptBatch) -> SegOutputs:
        nonlocal asked
        asked += 1
        said = segment(tiny_teacher, batch)
        return replace(said, query_logits=said.query_logits * float("nan")) if asked == 3 else said

    with torch.no_grad(), pytest.raises(NonFiniteError, match="teacher's query_logits"):
        taught(shards, breaks, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_memory_halves_the_batch_until_it_fits(shards: Shards, tiny_teacher: Segmenter, tmp_path: Path):
    sizes: list[int] = []

    def small(batch: PromptBatch) -> SegOutputs:
        sizes.append(len(batch.prompts))
        if len(batch.prompts) > 2:
            raise torch.OutOfMemoryError("full")
        return surer(tiny_teacher)(batch)

    with torch.no_grad():
        (tmp_path / "small").mkdir()
        (tmp_path / "large").mkdir()
        halved = taught(shards, small, tmp_path / "small")
        whole = taught(shards, surer(tiny_teacher), tmp_path / "large")
    assert max(sizes) > 4
    assert [shard["pairs"] for shard in halved] == [shard["pairs"] for shard in whole]
    names = ("small", "large")
    tables = [pq.read_table(tmp_path / name / whole[0]["file"], columns=["image_id", "prompts"]) for name in names]
    lengths = [[len(prompts) for prompts in table["prompts"].to_pylist()] for table in tables]
    assert lengths[0] == lengths[1]

    def hopeless(batch: PromptBatch) -> SegOutputs:
        raise torch.OutOfMemoryError("full")

    (tmp_path / "none").mkdir()
    with pytest.raises(torch.OutOfMemoryError):
        taught(shards, hopeless, tmp_path / "none")


def test_a_row_that_cannot_be_decoded_is_answered_with_the_reason(tiny_teacher: Segmenter, tmp_path: Path):
    shards = open_shards(scene_shards(tmp_path / "data", 6, seed=8, side=112))
    settings = DATA.model_copy(update={"max_pixels": 9})
    folder = tmp_path / "answers"
    folder.mkdir()
    said = teach_shard(
        list(shards.row_groups),
        answers_path(folder, Path(shards.row_groups[0].path).name),
        surer(tiny_teacher),
        112,
        (),
        settings,
        BATCH,
    )
    assert said["rejected"] == {"too many pixels": 6}
    assert (said["rows"], said["pairs"]) == (6, 0)
    store = store_of(shards, folder, ())
    group = shards.row_groups[0]
    for found in store.answered(group, read_rows(group)):
        assert isinstance(found, Reject)
        assert found.reason == "unanswered"
    with pytest.raises(DataError, match="unanswered 1"):
        next(follow([(0, shards.row_groups)], DATA, 112, seed=1, answers=store))
