"""Checkpoints beside training: of the right moment, told when they are safe, and left out where the disk fails."""

import errno
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path

import pytest
import torch

from sam3dist.data.segments import Segment
from sam3dist.engine.checkpoint import TrainingState, read_state
from sam3dist.engine.folder import CheckpointFolder, require_sums
from sam3dist.engine.optim import make_optimizer
from sam3dist.engine.saving import Saver
from sam3dist.errors import CheckpointError
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import Segmenter
from sam3dist.strategies.protocol import make_strategy
from sam3dist.types import Report
from tests.sam3dist.runs import Published, pupil_of, run, settings, stream

STATE = TrainingState(seed=0, strategy="ddp", precision="fp32", world_size=1, architecture="abc", step=3)


class FullDisk(CheckpointFolder):
    """A disk without room for the checkpoints of these steps."""

    def __init__(self, location: Path, steps: Sequence[int]) -> None:
        super().__init__(location)
        self.steps = {f"step-{step:08d}" for step in steps}
        self.attempts: list[str] = []

    def add(self, name: str, directory: Path, files: Sequence[Path], part: int) -> None:
        self.attempts.append(name)
        if name in self.steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().add(name, directory, files, part)


class SlowDisk(CheckpointFolder):
    """A disk that takes as long as it is told to."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self.goes_on = threading.Event()

    def add(self, name: str, directory: Path, files: Sequence[Path], part: int) -> None:
        assert self.goes_on.wait(30)
        super().add(name, directory, files, part)


def steps_in(folder: CheckpointFolder) -> list[int]:
    return [entry.step for entry in folder.entries()]


def test_state_survives_the_disk_with_what_json_cannot_hold(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings()
    pupil, strategy = pupil_of(tiny_teacher, config), make_strategy(config)
    strategy.setup(pupil, lambda module: make_optimizer(module, config.optim))
    saver = Saver(CheckpointFolder(tmp_path), None, pupil, strategy, config)
    report = Report(2, {"dice": nan, "miou_all": 0.5}, 1.5, {"fp32": 6.0}, -inf, before={"dice": nan})
    segments = (Segment("abc", 3, 1, 3, 8, batches=4), Segment("abc", 3, 1, 2, 8, batches=1))
    best = {"step": 0, "score": -inf}
    saver.begin(replace(STATE, report=report, before=report.before, best=best, segments=segments), None)
    path = Path(saver.settle() or "nothing")
    require_sums(path)
    json.loads((path / "state.json").read_text(), parse_constant=pytest.fail)  # no NaN in it
    state = read_state(path)
    assert state.report is not None
    assert isnan(state.report.metrics["dice"])
    assert isnan(state.before["dice"])
    assert state.report.metrics["miou_all"] == 0.5
    assert (state.report.score, state.best["score"]) == (-inf, -inf)
    assert (state.step, state.architecture, state.seed) == (3, "abc", 0)
    assert state.segments == segments
    assert state.after_step(2, 16, None).segments == (segments[0], replace(segments[1], batches=3))


def test_training_goes_on_while_a_checkpoint_of_the_state_before_is_written(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(optim={"steps": 4}, checkpoint={"every_steps": 2})
    _, expected = run(settings(optim={"steps": 4}, checkpoint={"every_steps": 2}), tiny_teacher, tmp_path / "plain")

    folder = SlowDisk(tmp_path / "slow")
    seen: list[int] = []

    def batches():
        for number, batch in enumerate(stream(), start=1):
            if number == 4:  # the step after the checkpoint has been made
                seen.extend(steps_in(folder))
                folder.goes_on.set()
            yield batch

    _, pupil = run(config, tiny_teacher, tmp_path, folder=folder, batches=batches())
    assert seen == []
    assert steps_in(folder) == [2, 4]
    for name, value in expected.state_dict().items():
        assert torch.equal(value, pupil.state_dict()[name]), name
    two = [load_segmenter(tmp_path / kind / "step-00000002").state_dict() for kind in ("plain", "slow")]
    for name, value in two[0].items():
        assert torch.equal(value, two[1][name]), name


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    tiny_teacher: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = settings(optim={"steps": 8}, eval={"every_steps": 4}, checkpoint={"every_steps": 2, "keep": 9})
    folder, told = FullDisk(tmp_path / "kept", (4, 6)), Published()
    report, _ = run(config, tiny_teacher, tmp_path, folder=folder, publish=told)
    assert steps_in(folder) == [2, 8]
    assert [(r.step, r.checkpoint and Path(r.checkpoint).name) for r in told] == [
        (4, "step-00000002"),
        (8, "step-00000008"),
    ]
    assert report.checkpoint == str(tmp_path / "kept" / "step-00000008")
    assert "step-00000004 could not be saved ([Errno 28] No space left on device); the run goes on" in (
        capsys.readouterr().out
    )
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "manifest.json",
        "step-00000002",
        "step-00000008",
    ]


def test_a_disk_that_stays_full_ends_the_run_and_leaves_the_last_good_checkpoint(
    tiny_teacher: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    config = settings(optim={"steps": 20}, checkpoint={"every_steps": 2})
    folder = FullDisk(tmp_path / "kept", range(4, 40))
    with pytest.raises(CheckpointError, match=r"step-00000008 could not .* goes on from .*step-00000002"):
        run(config, tiny_teacher, tmp_path, folder=folder)
    assert steps_in(folder) == [2]
    require_sums(tmp_path / "kept" / "step-00000002")


def test_the_last_checkpoint_is_tried_again(tiny_teacher: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings(optim={"steps": 2})
    folder = FullDisk(tmp_path / "kept", (2,))
    monkeypatch.setattr("time.sleep", lambda seconds: folder.steps.clear())  # somebody makes room
    told = Published()
    report, _ = run(config, tiny_teacher, tmp_path, folder=folder, publish=told)
    assert folder.attempts == ["step-00000002"] * 2
    assert [r.checkpoint for r in told] == [report.checkpoint] == [str(tmp_path / "kept" / "step-00000002")]


def test_a_notice_saves_once_and_the_run_goes_on(tiny_teacher: Segmenter, tmp_path: Path):
    asked = iter([False, False, True, True, True, True])
    config = settings(checkpoint={"every_steps": 100, "keep": 9})
    report, _ = run(config, tiny_teacher, tmp_path, told_to_save=lambda: next(asked))
    assert steps_in(CheckpointFolder(tmp_path)) == [3, 6]
    assert report.step == 6


def test_logs_travel_with_the_checkpoint(tiny_teacher: Segmenter, tmp_path: Path):
    (tmp_path / "here").write_text("curves")
    logs = {"history.jsonl": tmp_path / "here", "inherited.json": tmp_path / "never written"}
    report, _ = run(settings(optim={"steps": 1}), tiny_teacher, tmp_path / "kept", logs=logs)
    assert (Path(str(report.checkpoint)) / "history.jsonl").read_text() == "curves"
    require_sums(Path(str(report.checkpoint)))
