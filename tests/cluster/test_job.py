"""The words, errors and exit codes of jobs, without a cluster."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.job_submission import JobDetails, JobStatus, JobType
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from cluster import prepare
from cluster.job import lasting, run, split
from cluster.mistakes import GiveUpOnMistakes, explained, persons_mistake
from cluster.session import JOB_CONFIG, _without_those_of_the_job, job_variables
from cluster.submit import entry, exit_code
from sam3dist.errors import ConfigError, DataError, MemoryFullError, ResourceError


def test_words_are_arguments_or_overrides():
    words = ["small", "a.b=1", "space.x={uniform: [1, 2]}", "data.train=a=b"]
    arguments, overrides = split(words, "PRESET")
    assert arguments == ["small"]
    assert overrides == {"a.b": "1", "space.x": "{uniform: [1, 2]}", "data.train": "a=b"}


def test_a_missing_argument_is_named():
    with pytest.raises(ConfigError, match=r"expected PRESET \[dotted.key=value ...\], got nothing"):
        split(["a.b=1"], "PRESET")


def test_a_key_given_twice_is_refused_as_by_the_command_line():
    with pytest.raises(ConfigError, match=r"a.b: given twice \(1 and 2\); keep one"):
        split(["small", "a.b=1", "a.b=2"], "PRESET")


def test_the_job_quotes_every_word_for_the_shell():
    command = entry(["eval", "runs/my model", "shards", "space.x={uniform: [1, 2]}"])
    assert command == "python -m cluster.evaluate 'runs/my model' shards 'space.x={uniform: [1, 2]}'"


@pytest.mark.parametrize("words", [[], ["predict", "x"]])
def test_only_jobs_can_be_submitted(words: list[str]):
    with pytest.raises(ConfigError, match="not a job; use one of prepare, teach, train, tune, evaluate"):
        entry(words)


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, None, 1),
        (JobStatus.FAILED, 0, 1),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.STOPPED, -15, 143),
    ],
)
def test_the_exit_code_is_the_drivers_own_and_0_for_success_only(status: JobStatus, driver: int | None, code: int):
    details = JobDetails(type=JobType.SUBMISSION, entrypoint="x", status=status, driver_exit_code=driver)
    assert exit_code(details) == code


def test_a_persons_mistake_is_found_under_what_ray_wraps_around_it():
    mistake = DataError("shards/7.parquet: unreadable.")
    task = RayTaskError("fit", "traceback", mistake)
    for wrapped in (
        ControllerError(mistake),
        WorkerGroupError("two workers failed", {0: RuntimeError("gloo"), 1: mistake}),
        ControllerError(task),
        task.as_instanceof_cause(),
    ):
        assert str(persons_mistake(wrapped)) == str(mistake)
        assert str(persons_mistake(cloudpickle.loads(cloudpickle.dumps(wrapped)))) == str(mistake)
    assert persons_mistake(WorkerGroupError("lost", {0: RuntimeError("killed")})) is None
    assert persons_mistake(None) is None


def test_a_worker_that_ray_ended_for_want_of_memory_is_told_with_the_way_out():
    lost = WorkerHealthCheckFailedError("lost", failure=OutOfMemoryError("Task was killed due to the node's memory"))
    with pytest.raises(MemoryFullError, match=r"Ray ended a worker \(.*\); lower data.images_per_batch"), explained():
        raise WorkerGroupError("lost", {0: lost})


def raised(error: Exception) -> Exception:
    """What comes of an error of Ray Train."""
    with pytest.raises(Exception) as caught, explained():
        raise error
    return caught.value


def test_workers_that_never_start_are_told_in_one_line_but_a_bug_as_it_is():
    for reason in (WorkerGroupStartupTimeoutError(3), WorkerGroupStartupFailedError("a node died.\nits log")):
        said = raised(cloudpickle.loads(cloudpickle.dumps(ControllerError(reason))))
        assert isinstance(said, ResourceError)
        assert "\n" not in str(said)
        assert "strategy.num_workers" in str(said)
    assert "waiting for 3 workers)" in str(raised(ControllerError(WorkerGroupStartupTimeoutError(3))))
    mistake = DataError("shards/7.parquet: unreadable.")
    assert raised(ControllerError(mistake)) is mistake
    for bug in (ControllerError(KeyError("a bug")), WorkerGroupError("lost", {0: RuntimeError("killed")})):
        assert raised(bug) is bug


def test_a_lost_worker_is_tried_again_but_a_mistake_is_not():
    callback = GiveUpOnMistakes()
    callback.after_exception(None, {0: RuntimeError("killed")})
    with pytest.raises(DataError, match="unreadable"):
        callback.after_exception(None, {0: RuntimeError("gloo"), 1: DataError("unreadable")})


def test_a_driver_leaves_the_variables_of_its_job_alone(monkeypatch: pytest.MonkeyPatch):
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": {"env_vars": {name: "900"}}}))
    left = _without_those_of_the_job(job_variables())
    assert name not in left
    assert left == {key: value for key, value in job_variables().items() if key != name}


def test_a_persons_own_settings_win(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "17")
    assert job_variables()["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "17"


def outcome(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and what is said of a job that ends in this error."""

    def work(words: object) -> Path:
        raise error

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            run(work)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(left.value.code, int)
    return left.value.code, capsys.readouterr().err


def test_a_file_or_disk_that_cannot_be_used_is_one_line_as_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError) as caught:
        (tmp_path / "taken" / "below").mkdir()
    said = (2, f"sam3dist: {tmp_path}/taken/below: not a directory.\n")
    assert outcome(caught.value, capsys) == said
    assert outcome(cloudpickle.loads(cloudpickle.dumps(caught.value)), capsys) == said
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert outcome(full, capsys) == (2, "sam3dist: no space left on device.\n")
    assert outcome(DataError("two\nlines"), capsys) == (2, "sam3dist: two lines\n")
    for bug in (KeyError("a bug"), ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))):
        code, trace = outcome(bug, capsys)
        assert code == 1
        assert trace.startswith("Traceback")


def test_a_directory_that_ray_will_delete_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    uploaded = tmp_path / "working_dir_files" / "_ray_pkg_0"
    uploaded.mkdir(parents=True)
    monkeypatch.chdir(uploaded)
    assert lasting(str(tmp_path / "kept")) == tmp_path / "kept"
    assert capsys.readouterr().err == ""
    assert lasting("runs/x") == Path("runs/x")
    assert "run.dir=runs/x lies in the folder that Ray uploaded" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where no cluster is
    with pytest.raises(ResourceError):
        prepare.work(["instances.json", "images", "shards"])
    assert "OUT_DIR=shards lies in the folder that Ray uploaded" in capsys.readouterr().err
