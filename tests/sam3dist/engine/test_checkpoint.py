import json
from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path

import pytest

from sam3dist.config.load import to_yaml
from sam3dist.config.plain import plain
from sam3dist.data.segments import Segment
from sam3dist.engine.checkpoint import (
    TrainingState,
    architecture_of,
    as_plain,
    read_state,
    require_same_run,
    require_same_settings,
    write_checkpoint,
)
from sam3dist.engine.optim import make_optimizer
from sam3dist.errors import CheckpointError
from sam3dist.models.segmenter import Segmenter
from sam3dist.strategies.protocol import make_strategy
from sam3dist.types import Report
from tests.sam3dist.runs import newest_checkpoint, pupil_of, run, settings

STATE = TrainingState(seed=0, strategy="ddp", precision="fp32", world_size=2, architecture="abc", step=3)


class Writer:
    """Writes checkpoints of an untrained pupil."""

    def __init__(self, teacher: Segmenter, parent: Path) -> None:
        self.config = settings()
        self.pupil = pupil_of(teacher, self.config)
        self.strategy = make_strategy(self.config)
        self.strategy.setup(self.pupil, lambda module: make_optimizer(module, self.config.optim))
        self.parent = parent

    def __call__(self, step: int, keep: int = 2, **state: object) -> Path | None:
        return write_checkpoint(
            self.parent,
            replace(STATE, step=step, **state),
            pupil=self.pupil,
            strategy=self.strategy,
            config=self.config,
            keep=keep,
        )


@pytest.fixture
def write(tiny_teacher: Segmenter, tmp_path: Path) -> Writer:
    return Writer(tiny_teacher, tmp_path / "checkpoints")


def test_the_newest_are_kept_and_the_manifest_knows_the_latest(write: Writer):
    assert newest_checkpoint(write.parent) is None
    for step in (2, 4, 10):
        assert write(step) == write.parent / f"step-{step:08d}"
    assert sorted(path.name for path in write.parent.iterdir()) == ["manifest.json", "step-00000004", "step-00000010"]
    assert newest_checkpoint(write.parent) == write.parent / "step-00000010"


def test_a_run_that_goes_back_replaces_what_came_after(write: Writer):
    for step in (2, 4, 6):
        write(step, keep=3)
    write(4, keep=3)  # resumed from step 2
    assert sorted(path.name for path in write.parent.glob("step-*")) == ["step-00000002", "step-00000004"]
    assert newest_checkpoint(write.parent) == write.parent / "step-00000004"


def test_the_history_of_the_data_is_kept(write: Writer):
    segments = (Segment("abc", 3, 1, 3, 8, batches=4), Segment("abc", 3, 1, 2, 8, batches=1))
    path = write(2, segments=segments)
    assert path is not None
    state = read_state(path)
    assert state.segments == segments
    assert state.after_step(2, 16, None).segments == (segments[0], replace(segments[1], batches=3))


def test_a_crash_while_saving_leaves_the_last_checkpoint(write: Writer, monkeypatch: pytest.MonkeyPatch):
    write(2)

    def full(directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "half").touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(write.strategy, "save", full)
    with pytest.raises(OSError, match="No space"):
        write(4)
    assert newest_checkpoint(write.parent) == write.parent / "step-00000002"
    monkeypatch.undo()
    write(4)  # over the remains
    assert not list((write.parent / "step-00000004").rglob("half"))


def test_state_survives_the_disk_with_what_json_cannot_hold(write: Writer):
    report = Report(2, {"dice": nan, "miou_all": 0.5}, 1.5, {"fp32": 6.0}, -inf, before={"dice": nan})
    path = write(2, report=report, before=report.before, best={"step": 0, "score": -inf})
    assert path is not None
    json.loads((path / "state.json").read_text(), parse_constant=pytest.fail)  # no NaN in it
    state = read_state(path)
    assert state.report is not None
    assert isnan(state.report.metrics["dice"])
    assert isnan(state.before["dice"])
    assert state.report.metrics["miou_all"] == 0.5
    assert (state.report.score, state.best["score"]) == (-inf, -inf)
    assert (state.step, state.architecture, state.seed) == (2, "abc", 0)


def test_what_is_no_training_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"expected state.json and training/"):
        read_state(tmp_path)
    (tmp_path / "training").mkdir()
    (tmp_path / "state.json").write_text('{"step": 3}')
    with pytest.raises(CheckpointError, match="another version of sam3dist"):
        read_state(tmp_path)
    (tmp_path / "state.json").write_text('{"step"')
    with pytest.raises(CheckpointError, match=r"state.json: unreadable"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("saved", "fresh", "message"),
    [
        ({"architecture": "xyz"}, {}, "other shapes"),
        ({"strategy": "fsdp"}, {}, "strategy.kind=ddp: .* saved by fsdp"),
        (
            {"strategy": "deepspeed", "world_size": 4},
            {"strategy": "deepspeed"},
            "strategy.num_workers=2: .* use strategy.num_workers=4",
        ),
    ],
)
def test_a_run_that_cannot_go_on_says_why(saved: dict[str, object], fresh: dict[str, object], message: str):
    with pytest.raises(CheckpointError, match=message):
        require_same_run(Path("run"), replace(STATE, **saved), replace(STATE, **fresh))


def test_other_numbers_of_workers_may_resume_ddp_and_fsdp():
    for strategy in ("ddp", "fsdp"):
        one, two = (replace(STATE, strategy=strategy, world_size=size) for size in (1, 2))
        require_same_run(Path("run"), two, one)


def test_resuming_with_another_student_is_refused(tiny_teacher: Segmenter, tmp_path: Path):
    run(settings(optim={"steps": 1}), tiny_teacher, tmp_path)
    other = settings(student={"vision_depth": 2})
    with pytest.raises(CheckpointError, match="other shapes"):
        run(other, tiny_teacher, tmp_path, resume=tmp_path / "step-00000001")


@pytest.mark.parametrize(
    ("changed", "finished", "message"),
    [
        ({"distillation": {"temperature": 6.0}}, False, r"distillation\.temperature=6\.0: .*temperature=2\.0; choose"),
        ({"distillation": {"task": {"dice": 1.0}}}, False, r"distillation\.task\.dice=1\.0: .*dice=10\.0"),
        ({"run": {"seed": 1}}, False, r"run\.seed=1: .*run\.seed=0"),
        ({"data": {"train": "elsewhere"}}, False, r"data\.train=elsewhere: .*data\.train=None"),
        ({"optim": {"learning_rate": 0.1}}, True, r"optim\.learning_rate=0\.1"),
        ({"optim": {"learning_rate": 0.1, "steps": 99}, "strategy": {"num_workers": 4}}, False, None),
        ({"run": {"loggers": ("wandb",), "figures": 0}, "checkpoint": {"keep": 9}}, True, None),
    ],
)
def test_a_run_directory_is_of_one_run(
    changed: dict[str, dict[str, object]], finished: bool, message: str | None, tmp_path: Path
):
    (tmp_path / "config.yaml").write_text(to_yaml(settings()))
    if message is None:
        require_same_settings(tmp_path, settings(**changed), finished)
        return
    with pytest.raises(CheckpointError, match=message):
        require_same_settings(tmp_path, settings(**changed), finished)


def test_a_finished_run_does_not_pass_for_one_with_other_settings(tiny_teacher: Segmenter, tmp_path: Path):
    run(settings(optim={"steps": 1}), tiny_teacher, tmp_path)
    other = settings(optim={"steps": 1, "learning_rate": 0.5})
    with pytest.raises(CheckpointError, match=r"optim\.learning_rate=0\.5"):
        run(other, tiny_teacher, tmp_path, resume=tmp_path / "step-00000001")


def test_a_damaged_training_state_is_a_checkpoint_error(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(optim={"steps": 1})
    run(config, tiny_teacher, tmp_path)
    file = tmp_path / "step-00000001" / "training" / "state.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state.pt: cannot be resumed"):
        run(config, tiny_teacher, tmp_path, resume=tmp_path / "step-00000001")


def test_architecture_tells_projections_and_widths_apart(tiny_teacher: Segmenter):
    configs = [settings(), settings(distillation={"gamma": 0.0}), settings(student={"detr_width": 32})]
    assert len({architecture_of(pupil_of(tiny_teacher, config)) for config in configs}) == 3
    assert architecture_of(pupil_of(tiny_teacher, configs[0])) == architecture_of(pupil_of(tiny_teacher, configs[0]))


def test_configurations_with_and_without_pydantic_are_written_alike():
    config = settings()
    assert as_plain(plain(to_yaml(config))) == as_plain(config)
