import json
from math import nan
from pathlib import Path

import pytest

from sam3dist.engine import loggers
from sam3dist.engine.loggers import History, TensorBoard, make_loggers, read_history
from sam3dist.errors import ConfigError
from tests.sam3dist.runs import settings


def test_history_keeps_one_json_line_per_entry(tmp_path: Path):
    history = History(tmp_path / "new")
    history.start(0)
    history.log(1, "train", {"loss/total": 2.5})
    history.log(2, "eval", {"miou_all": nan})
    history.close()
    lines = (tmp_path / "new" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "kind": "train", "loss/total": 2.5},
        {"step": 2, "kind": "eval", "miou_all": None},  # NaN is not JSON
    ]


def test_a_resumed_history_forgets_what_came_after_the_checkpoint(tmp_path: Path):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        history = History(tmp_path)
        history.start(start)
        for step in steps:
            history.log(step, "train", {"run": start})
        history.close()
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 5, "ki')  # a crash
    assert [(line["step"], line["run"]) for line in read_history(tmp_path / "history.jsonl")] == [
        (1, 0),
        (2, 0),
        (3, 2),
        (4, 2),
    ]


def test_a_new_run_starts_a_new_history(tmp_path: Path):
    for _ in range(2):
        history = History(tmp_path)
        history.start(0)
        history.log(1, "train", {})
        history.close()
    assert len(read_history(tmp_path / "history.jsonl")) == 1


def test_a_missing_package_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(loggers.PACKAGES, "wandb", "a_package_that_nobody_has")
    with pytest.raises(ConfigError, match=r"run.loggers: wandb is not installed; pip install"):
        make_loggers(settings(run={"loggers": ("tensorboard", "wandb")}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_the_curves(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings(run={"loggers": ("tensorboard",)})
    history, board = make_loggers(config, tmp_path)
    assert isinstance(history, History)
    assert isinstance(board, TensorBoard)
    board.start(0)
    board.log(1, "train", {"loss/total": 3.0})
    board.log(2, "train", {"loss/total": 2.0})
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss/total")] == [(1, 3.0), (2, 2.0)]


def test_wandb_keeps_a_run_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 1):
        _, tracker = make_loggers(settings(run={"loggers": ("wandb",)}), tmp_path)
        tracker.start(start)
        tracker.log(start + 1, "train", {"loss/total": 3.0})
        tracker.close()
    identity = (tmp_path / "wandb.id").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))) in (1, 2)  # named by the second


def test_mlflow_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import mlflow

    for start in (0, 1):
        _, tracker = make_loggers(settings(run={"loggers": ("mlflow",)}), tmp_path)
        tracker.start(start)
        tracker.log(start + 1, "train", {"loss/total": 3.0 - start})
        tracker.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    points = client.get_metric_history((tmp_path / "mlflow.id").read_text(), "train/loss/total")
    assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 2.0)]
