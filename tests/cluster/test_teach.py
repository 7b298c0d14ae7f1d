"""Teaching on Ray, and runs that read what was taught."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from ray.util.state import list_actors

from cluster.taught import answers_folder, stored_answers
from cluster.teach import run_teaching, work
from cluster.trainer import run_training
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.samples.write import write_scenes
from sam3dist.errors import ConfigError, DataError
from tests.sam3dist.promised import assert_promised


@pytest.fixture
def own_data(tiny_run: DistillConfig, scenes: tuple[Path, Path], tmp_path: Path) -> DistillConfig:
    """The tiny run with a copy of the training shards, where answers may be put."""
    shutil.copytree(scenes[0], tmp_path / "train", ignore=shutil.ignore_patterns("answers"))
    return with_overrides(tiny_run, {"data.train": str(tmp_path / "train")})


def test_answers_go_beside_the_data_unless_told_otherwise(own_data: DistillConfig):
    assert answers_folder(own_data) == Path(str(own_data.data.train)) / "answers"
    assert answers_folder(with_overrides(own_data, {"teacher.answers": "/x"})) == Path("/x")


def test_without_data_there_is_nothing_to_ask(tiny_run: DistillConfig):
    with pytest.raises(ConfigError, match=r"data\.train: names no shards"):
        run_teaching(with_overrides(tiny_run, {"data.train": None}))


def test_a_folder_with_other_things_is_left_alone(own_data: DistillConfig, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"thesis\.tex.*give an empty directory"):
        run_teaching(with_overrides(own_data, {"teacher.answers": str(tmp_path / "mine")}))


def test_only_a_run_that_learns_from_stored_answers_needs_them(own_data: DistillConfig):
    assert stored_answers(own_data) is None
    labels = {"distillation.beta": 0, "distillation.gamma": 0, "teacher.mode": "stored"}
    assert stored_answers(with_overrides(own_data, labels)) is None
    with pytest.raises(DataError, match="no stored answers in it; write them with `sam3dist teach`"):
        run_training(with_overrides(own_data, {"teacher.mode": "stored"}))


def losses(run_dir: Path) -> list[dict[str, float]]:
    """Every loss of every step."""
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    return [{name: value for name, value in line.items() if "/" in name or name == "total"} for line in steps]


@pytest.mark.slow
def test_taught_once_then_trained_on_the_answers_as_with_the_teacher(
    joined: object, own_data: DistillConfig, tmp_path: Path
):
    rows: list[tuple[int, int]] = []
    first = run_teaching(own_data, lambda done, total: rows.append((done, total)))
    assert rows[-1] == (16, 16)
    assert (first["rows"], first["shards"], first["recomputed"], first["rejected"]) == (16, 1, 1, {})
    assert first["fidelity"]["score_kl"] < 1e-3
    assert 0 < first["goodput"] < 1
    again = run_teaching(own_data)
    assert (again["recomputed"], again["asking_seconds"], again["goodput"]) == (0, 0, None)

    online = run_training(own_data, tmp_path / "online")
    stored = run_training(with_overrides(own_data, {"teacher.mode": "stored"}), tmp_path / "stored")
    with_teacher = losses(tmp_path / "online")
    assert len(with_teacher) == 4
    assert with_teacher[0]["distillation/semantic"] > 0
    assert losses(tmp_path / "stored") == [pytest.approx(step, rel=0.02, abs=2e-3) for step in with_teacher]
    assert stored["metrics"] == pytest.approx(online["metrics"], abs=0.02, nan_ok=True)

    with pytest.raises(DataError, match=r"holds answers in auto, not fp32"):
        run_training(with_overrides(own_data, {"teacher.mode": "stored", "teacher.precision": "fp32"}))
    (tmp_path / "train" / "answers" / "manifest.json").unlink()
    with pytest.raises(DataError, match="not complete"):
        run_training(with_overrides(own_data, {"teacher.mode": "stored"}))


@pytest.mark.slow
def test_the_job_reports_what_is_promised(joined: object, own_data: DistillConfig, tmp_path: Path):
    words = [f"data.train={own_data.data.train}", f"teacher.source={own_data.teacher.source}", "distillation.gamma=0"]
    directory = work(["smoke", *words, f"run.dir={tmp_path / 'taught'}"])
    report = json.loads((directory / "report.json").read_text())
    assert_promised(report)
    assert report["feature_bytes"] == 0
    assert (Path(report["store"]) / "manifest.json").is_file()


def test_what_stored_answers_cannot_follow_is_refused(own_data: DistillConfig):
    cropped = with_overrides(own_data, {"teacher.mode": "stored", "data.crop_share": 0.5})
    with pytest.raises(ConfigError, match=r"data\.crop_share=0\.5: stored answers .* cannot follow a crop"):
        run_training(cropped)
    assert stored_answers(with_overrides(cropped, {"teacher.mode": "online"})) is None


@pytest.mark.long
def test_an_actor_that_is_killed_costs_its_shard_only(joined: object, own_data: DistillConfig, tmp_path: Path):
    source = write_scenes(tmp_path / "scenes", 48, seed=2, side=112)
    prepare(*source, tmp_path / "many", PrepareSettings(rows_per_group=4, rows_per_shard=8))
    config = with_overrides(own_data, {"data.train": str(tmp_path / "many"), "eval.images_per_batch": 1})
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if 8 <= done < total and not killed:
            teaching = [a for a in list_actors(filters=[("state", "=", "ALIVE")]) if "_Teacher" in str(a.class_name)]
            killed.extend(int(actor.pid) for actor in teaching[:1])
            os.kill(killed[0], signal.SIGKILL)

    result = run_teaching(config, kill_one)
    assert killed
    assert (result["rows"], result["shards"], result["rejected"]) == (48, 6, {})
    undisturbed = run_teaching(with_overrides(config, {"teacher.answers": str(tmp_path / "again")}))
    assert result["pairs"] == undisturbed["pairs"]
    for path in (tmp_path / "again").iterdir():
        assert (tmp_path / "many" / "answers" / path.name).read_bytes() == path.read_bytes(), path.name
