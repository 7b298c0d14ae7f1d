"""`sam3dist submit` against a cluster that asks for a token: exit codes, Ctrl-C, bad connections.

Most jobs are a script of a few lines in an uploaded folder of its own, where `python -m cluster.train` finds it.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster import follow
from cluster.submit import submit
from sam3dist.config.submission import SubmitSettings
from sam3dist.engine.checkpoint import read_state
from sam3dist.errors import ConfigError
from tests.cluster.conftest import RunningCluster, as_words
from tests.cluster.proxy import proxy

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, signal, sys, time

def leave(signum, frame):
    time.sleep(6)  # longer than Ray waits of itself
    print("saved", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, leave)
seconds, code = float(sys.argv[1]), int(sys.argv[2])
print("told", os.environ.get("TOLD"), flush=True)
for number in range(int(seconds / 0.5)):
    print(f"line {number}", flush=True)
    time.sleep(0.5)
sys.exit(code)
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a job that says a line every half second: `train SECONDS CODE`."""
    (tmp_path / "code" / "cluster").mkdir(parents=True)
    (tmp_path / "code" / "cluster" / "__init__.py").touch()
    (tmp_path / "code" / "cluster" / "train.py").write_text(SCRIPT)
    return tmp_path / "code"


@pytest.fixture
def client(running_cluster: RunningCluster) -> JobSubmissionClient:
    return JobSubmissionClient(running_cluster.dashboard)


def submitted(*words: str, home: Path, **variables: str | None) -> subprocess.Popen[str]:
    """`sam3dist submit` in a process of its own, with these environment variables set or, as None, unset."""
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    for name, value in variables.items():
        environment.pop(name, None)
        environment.update({} if value is None else {name: value})
    return subprocess.Popen(
        [sys.executable, "-m", "sam3dist", "submit", *words],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_until(process: subprocess.Popen[str], wanted: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if wanted in line:
            return
    raise AssertionError(f"ended with {process.wait()} before {wanted!r}")


def whole_log(text: str, seconds: float) -> bool:
    """Whether every line of the script is in the text, once and in order."""
    said = [line for line in text.splitlines() if line.startswith("line ")]
    return said == [f"line {number}" for number in range(int(seconds / 0.5))]


def test_the_job_has_its_variables_and_metadata_and_its_exit_code_is_ours(
    running_cluster: RunningCluster, client: JobSubmissionClient, folder: Path
):
    out = io.StringIO()
    (folder / "data").mkdir()
    (folder / "data" / "manifest.json").write_text(json.dumps({"schema_version": 1, "shards": []}))
    settings = SubmitSettings(
        working_dir=str(folder), id="once", env={"TOLD": "a b"}, metadata={"study": "s1"}, resources={"CPU": 1}
    )
    words = ["train", "1", "7", "run.dir=/data/x"]
    assert submit(words, running_cluster.dashboard, settings, out=out) == 7
    said = out.getvalue()
    assert said.startswith("uploading 2 files, 0.0 MB\nnot uploading data (shards)\nonce: python -m cluster.train 1 7")
    assert "told a b" in said
    assert whole_log(said, 1)
    details = client.get_job_info("once")
    assert details.metadata == {"verb": "train", "run": "/data/x", "study": "s1"}
    with pytest.raises(ConfigError, match=r"submit\.id=once: the cluster has had this job; follow it with"):
        submit(words, running_cluster.dashboard, settings, out=out)
    words = ["train", "0", "0"]
    assert submit(words, running_cluster.dashboard, SubmitSettings(working_dir=str(folder)), out=out) == 0
    left = SubmitSettings(working_dir=str(folder), id="left", follow=False)
    assert submit(["train", "0", "3"], running_cluster.dashboard, left, out=out) == 0


def test_with_the_token_it_runs_and_without_or_with_a_wrong_one_it_is_refused_in_one_line(
    running_cluster: RunningCluster, folder: Path, tmp_path: Path
):
    words = ["train", "0", "4", f"run.address={running_cluster.dashboard}", f"submit.working_dir={folder}"]
    token = os.environ["RAY_AUTH_TOKEN"]
    (tmp_path / "token").write_text(token)
    in_a_file = {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    for variables, code in (
        ({}, 4),
        (in_a_file, 4),
        ({"RAY_AUTH_MODE": None}, 2),  # a token alone is ignored
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": None}, 2),
        ({"RAY_AUTH_TOKEN": None}, 2),
        ({"RAY_AUTH_TOKEN": "0" * len(token)}, 2),
        ({"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")}, 2),
    ):
        process = submitted(*words, home=tmp_path, **variables)
        said, _ = process.communicate(timeout=90)
        assert process.returncode == code, (variables, said)
        if code == 2:
            assert len(said.splitlines()) == 1, said
            assert said.startswith(f"sam3dist: run.address={running_cluster.dashboard}: no job server answers there"), (
                said
            )
            assert "RAY_AUTH_MODE" in said


@pytest.mark.parametrize(
    ("on_interrupt", "number", "code"),
    [("leave", signal.SIGINT, 130), ("stop", signal.SIGINT, 130), ("stop", signal.SIGTERM, 143)],
)
def test_an_interrupt_leaves_the_job_or_ends_it_in_order(
    running_cluster: RunningCluster,
    client: JobSubmissionClient,
    folder: Path,
    tmp_path: Path,
    on_interrupt: str,
    number: signal.Signals,
    code: int,
):
    job = f"{on_interrupt}-{number}"
    process = submitted(
        *("train", "60", "0", f"run.address={running_cluster.dashboard}", f"submit.working_dir={folder}"),
        *(f"submit.on_interrupt={on_interrupt}", f"submit.id={job}"),
        home=tmp_path,
    )
    list(lines_until(process, "line 2"))
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    if on_interrupt == "leave":
        assert f"{job}: left running; stop it with: ray job stop {job}" in said
        assert client.get_job_status(job) == JobStatus.RUNNING
        client.stop_job(job)
    else:
        assert "saved" in said  # though that took longer than the 3 s of Ray
        assert said.endswith(f"{job}: stopped\n")
        assert client.get_job_status(job) == JobStatus.STOPPED


@pytest.mark.long
def test_a_job_stopped_by_another_hand_gives_143(
    running_cluster: RunningCluster, client: JobSubmissionClient, folder: Path
):
    out = io.StringIO()
    settings = SubmitSettings(working_dir=str(folder), id="stopped")
    Timer(6, lambda: client.stop_job("stopped")).start()
    assert submit(["train", "60", "0"], running_cluster.dashboard, settings, out=out) == 143
    assert "saved" in out.getvalue()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["cut", "freeze"])
def test_every_line_comes_once_through_a_connection_that_breaks_or_goes_dead(
    running_cluster: RunningCluster, folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(follow, "QUIET_S", 3.0)
    port = urlsplit(running_cluster.dashboard).port
    assert port is not None
    out = io.StringIO()
    settings = SubmitSettings(working_dir=str(folder), id=fault)
    faults: list[int] = []

    with proxy(port) as between:

        def break_it() -> None:
            faults.append(len(between.pairs))
            getattr(between, fault)()

        began = time.monotonic()
        timers = [Timer(seconds, break_it) for seconds in (5.0, 9.0)]
        for timer in timers:
            timer.start()
        assert submit(["train", "15", "5"], between.address, settings, out=out) == 5
        assert time.monotonic() - began > 15
    assert len(faults) == 2
    assert whole_log(out.getvalue(), 15), out.getvalue()


@pytest.mark.long
def test_a_job_that_waits_for_what_no_node_has_says_so_and_can_be_given_up(
    running_cluster: RunningCluster, client: JobSubmissionClient, folder: Path, tmp_path: Path
):
    process = submitted(
        *("train", "60", "0", f"run.address={running_cluster.dashboard}", f"submit.working_dir={folder}"),
        *("submit.resources.driver=0.001", "submit.id=waiting", "submit.on_interrupt=stop"),
        home=tmp_path,
    )
    list(lines_until(process, "waiting for resources"))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.endswith("waiting: has not begun; Ray ends it when it does\n")
    assert client.get_job_status("waiting") == JobStatus.PENDING


def test_a_persons_mistake_in_the_job_is_exit_code_2(running_cluster: RunningCluster):
    out = io.StringIO()
    settings = SubmitSettings(working_dir=str(REPOSITORY))
    words = ["train", "smoke", "data.train=/gone", "data.val=/gone", "run.dir=/tmp/gone"]
    assert submit(words, running_cluster.dashboard, settings, out=out) == 2
    assert "sam3dist: /gone: no manifest.json in it" in out.getvalue()
    assert "Traceback" not in out.getvalue()


@pytest.mark.long
def test_a_run_that_is_stopped_by_ctrl_c_leaves_a_checkpoint(
    running_cluster: RunningCluster, tiny_settings: dict[str, Any], tmp_path: Path
):
    run_dir = tmp_path / "run"
    steps = dict.fromkeys(("optim.steps", "eval.every_steps", "checkpoint.every_steps"), 5000)
    words = as_words({**tiny_settings, **steps, "run.dir": run_dir, "run.address": running_cluster.dashboard})
    process = submitted(
        *("train", "smoke", *words),
        "submit.on_interrupt=stop",
        home=tmp_path,
    )
    list(lines_until(process, "[20/5000]"))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    report = json.loads((run_dir / "report.json").read_text())
    assert report["status"] == "stopped"
    assert read_state(Path(report["checkpoint"])).step >= 20
