"""What a run is refused for, or told, before a cluster is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cluster.trainer import CHECKPOINTS, located, run_training
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import to_yaml, with_overrides
from sam3dist.data.shards import open_shards
from sam3dist.engine.checkpoint import TrainingState
from sam3dist.engine.folder import CheckpointFolder, Entry
from sam3dist.errors import CheckpointError, ConfigError, ResourceError
from sam3dist.verbs import smoke


@pytest.fixture
def config(tiny_run: DistillConfig) -> DistillConfig:
    """A run on a cluster that nobody keeps."""
    return with_overrides(tiny_run, {"run.address": "127.0.0.1:1"})


def begun(config: DistillConfig, run_dir: Path, step: int) -> None:
    """A run directory as a run leaves it that was stopped at this step."""
    folder, name = CheckpointFolder(run_dir / CHECKPOINTS), f"step-{step:08d}"
    checkpoint = folder.begin(name)
    state = TrainingState(0, config.strategy.kind, "fp32", config.strategy.num_workers, "architecture", step=step)
    (checkpoint / "state.json").write_text(json.dumps(asdict(state)))
    for place in (checkpoint, run_dir):
        (place / "config.yaml").write_text(to_yaml(config))
    folder.add(name, checkpoint, [checkpoint / "state.json", checkpoint / "config.yaml"], 0)
    folder.publish(Entry(name, step), parts=1, keep=1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"distillation.temperature": 6.0}, "distillation.temperature=6.0: .*step-00000002 was trained with"),
        ({"student.vision_width": 32}, "student.vision_width=32: .*student.vision_width=16; choose another run.dir"),
        ({"optim.steps": 2, "optim.learning_rate": 0.1}, "optim.learning_rate=0.1: "),
    ],
)
def test_a_run_with_other_settings_is_refused_before_it_touches_the_directory(
    config: DistillConfig, changed: dict[str, Any], said: str, tmp_path: Path
):
    begun(config, tmp_path, step=2)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=said):
        run_training(with_overrides(config, changed), tmp_path)
    assert (tmp_path / "config.yaml").read_text() == before


def test_more_steps_or_workers_may_go_on(config: DistillConfig, tmp_path: Path):
    begun(config, tmp_path, step=4)
    more = with_overrides(config, {"optim.steps": 8, "optim.learning_rate": 0.1, "strategy.num_workers": 2})
    with pytest.raises(ResourceError, match="no cluster answers there"):
        run_training(more, tmp_path)
    (tmp_path / CHECKPOINTS / "manifest.json").unlink()
    with pytest.raises(ResourceError, match="no cluster answers there"):
        run_training(with_overrides(config, {"distillation.temperature": 6.0}), tmp_path)


@pytest.mark.parametrize(("missing", "given"), [("val", "train"), ("train", "val")])
def test_naming_half_of_the_data_is_refused_and_nothing_is_generated(
    config: DistillConfig, missing: str, given: str, tmp_path: Path
):
    half = with_overrides(config, {f"data.{missing}": None, f"data.{given}": "shards"})
    for find in (lambda: located(half, tmp_path), lambda: smoke.scenes(half, tmp_path)):
        with pytest.raises(ConfigError, match=rf"data\.{missing}: not named, though data\.{given}=shards is") as caught:
            find()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_generated_scenes_are_told_and_named_data_is_not(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert located(config, tmp_path).data == config.data
    assert capsys.readouterr().out == ""
    assert smoke.scenes(config, tmp_path) == {}
    monkeypatch.setattr("cluster.trainer.TRAIN_SCENES", 2)
    monkeypatch.setattr("cluster.trainer.VAL_SCENES", 1)
    found = located(with_overrides(config, {"data.train": None, "data.val": None}), tmp_path).data
    assert [open_shards(str(folder)).rows for folder in (found.train, found.val)] == [2, 1]
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert str(tmp_path / "scenes") in said
