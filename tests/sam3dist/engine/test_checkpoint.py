from dataclasses import replace
from pathlib import Path

import pytest

from sam3dist.config.load import to_yaml
from sam3dist.config.plain import plain
from sam3dist.engine.checkpoint import (
    TrainingState,
    architecture_of,
    as_plain,
    read_state,
    require_same_run,
    require_same_settings,
    require_training_state,
)
from sam3dist.errors import CheckpointError
from sam3dist.models.segmenter import Segmenter
from tests.sam3dist.runs import pupil_of, run, settings

STATE = TrainingState(seed=0, strategy="ddp", precision="fp32", world_size=2, architecture="abc", step=3)


def test_what_is_no_training_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"state.json: unreadable"):
        read_state(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected state.json and training/"):
        require_training_state(tmp_path)
    (tmp_path / "state.json").write_text('{"step": 3}')
    with pytest.raises(CheckpointError, match="another version of sam3dist"):
        read_state(tmp_path)
    (tmp_path / "state.json").write_text('{"step"')
    with pytest.raises(CheckpointError, match=r"state.json: unreadable"):
        read_state(tmp_path)


def test_another_architecture_cannot_go_on():
    with pytest.raises(CheckpointError, match="other shapes"):
        require_same_run(Path("run"), replace(STATE, architecture="xyz"), STATE)


def test_any_strategy_with_any_number_of_workers_may_go_on():
    require_same_run(Path("run"), STATE, replace(STATE, strategy="deepspeed", precision="fp16", world_size=5))


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


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_damaged_training_state_is_a_checkpoint_error(name: str, tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(optim={"steps": 1})
    run(config, tiny_teacher, tmp_path)
    file = tmp_path / "step-00000001" / "training" / name
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"training: cannot be resumed"):
        run(config, tiny_teacher, tmp_path, resume=tmp_path / "step-00000001")


def test_architecture_tells_projections_and_widths_apart(tiny_teacher: Segmenter):
    configs = [settings(), settings(distillation={"gamma": 0.0}), settings(student={"detr_width": 32})]
    assert len({architecture_of(pupil_of(tiny_teacher, config)) for config in configs}) == 3
    assert architecture_of(pupil_of(tiny_teacher, configs[0])) == architecture_of(pupil_of(tiny_teacher, configs[0]))


def test_configurations_with_and_without_pydantic_are_written_alike():
    config = settings()
    assert as_plain(plain(to_yaml(config))) == as_plain(config)
