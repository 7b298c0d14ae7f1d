"""The example of a foreign teacher, on photographs with known masks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sam3dist.answers import decoded, imitable
from sam3dist.config.distill import DataConfig, EvalConfig, TeacherConfig
from sam3dist.data.decode import collate, decode_row
from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.shards import Shards, open_shards, read_rows
from sam3dist.targets import make_targets
from sam3dist.teaching.codec import decode_answer, stack_answers
from sam3dist.teaching.store import AnswerStore, Identity, answers_path
from sam3dist.teaching.teach import teach_shard
from sam3dist.teaching.teachers import known_of, open_teacher

FILE = Path(__file__).resolve().parents[2] / "examples" / "voc_teacher.py"
CONFIG = TeacherConfig(source=f"{FILE}:VocTeacher")


@pytest.fixture
def folder(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the network is, named in the environment."""
    folder = shared_data / "voc_teacher"
    if not folder.is_dir():
        pytest.skip(f"no network at {folder}")
    monkeypatch.setenv("VOC_TEACHER", str(folder))
    return folder


@pytest.fixture
def network(folder: Path) -> Path:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert, which runs the example, is not installed")
    return folder


@pytest.fixture(scope="module")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The photographs to evaluate on."""
    source, out = shared_data / "photos", tmp_path_factory.mktemp("photos") / "out"
    prepare(source / "instances_val.json", source / "images", out, PrepareSettings())
    return open_shards(out)


def test_it_is_known_without_what_runs_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)  # importing it now fails
    known = known_of(CONFIG)
    assert (known.image_size, known.feature_names) == (513, ())


def test_it_finds_what_its_classes_name_in_photographs(network: Path, photos: Shards):
    teacher = open_teacher(CONFIG, "cpu")
    intersection = union = 0
    answers: dict[bool, list[bool]] = {True: [], False: []}
    for group in photos.row_groups:
        for row in read_rows(group):
            asked = [prompt for prompt in row.prompts if teacher.number(prompt.phrase) >= 0]
            if not asked:
                continue
            batch = collate([decode_row(row, asked, teacher.image_size, 10**7)])
            outputs, labels = teacher(batch), make_targets(batch, (171, 171), "cpu")
            maps = outputs.semantic_logits > 0
            counted = torch.ones_like(maps) if labels.ignore is None else ~labels.ignore
            intersection += int((maps & labels.semantic & counted).sum())
            union += int(((maps | labels.semantic) & counted).sum())
            for present, logit in zip(batch.present.tolist(), outputs.presence_logits.tolist(), strict=True):
                answers[present].append(logit > 0)
    assert intersection / union > 0.6
    assert sum(answers[True]) > 0.6 * len(answers[True])
    assert sum(answers[False]) < 0.1 * len(answers[False])


def test_a_phrase_outside_its_classes_is_absent(network: Path, photos: Shards):
    row = read_rows(photos.row_groups[0])[0]
    teacher = open_teacher(CONFIG, "cpu")
    batch = collate([decode_row(row, row.prompts[:1], teacher.image_size, 10**7)])
    for phrase in ("background", "xylophone", ""):
        said = imitable(teacher(replace(batch, prompts=(phrase,) * len(batch.prompts))))
        assert (said.presence_logits < 0).all()
        assert sum(said.counts) == 0


def test_its_store_has_its_answers(network: Path, photos: Shards, tmp_path: Path):
    teacher = open_teacher(CONFIG, "cpu")
    group = photos.row_groups[0]
    data, limits = DataConfig(decode_threads=1), EvalConfig(images_per_batch=4, prompts_per_batch=16)
    path = answers_path(tmp_path, Path(group.path).name)
    said = teach_shard([group], path, teacher, teacher.image_size, (), data, limits)
    assert said["rejected"] == {}
    assert said["fidelity"]["least_mask_iou"] > 0.98
    store = AnswerStore(tmp_path, Identity("t", "auto", 513, photos.content_hash, ()), ())
    for row in store.answered(group, read_rows(group))[:8]:
        answers = imitable(teacher(collate([decode_row(row, row.prompts, 513, 10**7)])))
        found = decoded(stack_answers([decode_answer(prompt.taught["answer"]) for prompt in row.prompts], {}))
        assert found.counts == answers.counts
        assert torch.equal(found.presence_logits, answers.presence_logits)
        assert (
            (found.semantic_logits - answers.semantic_logits).abs() < 0.05 + 0.04 * answers.semantic_logits.abs()
        ).all()
