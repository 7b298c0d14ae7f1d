"""One Ray cluster for all tests of this folder, tiny data, and a tiny run to vary."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sam3dist.config.distill import DistillConfig, RunConfig
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.data.samples.write import scene_shards

REPOSITORY = Path(__file__).resolve().parents[2]
CPUS = 4  # logical: the workers of these tests are tiny

# The cluster of these tests listens on every interface. Ray reads this when it is imported, hence not in a fixture.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@dataclass(frozen=True)
class RunningCluster:
    address: str
    dashboard: str


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[RunningCluster]:
    """One for all tests, which asks for the token of this process."""
    with ray_head() as running:
        yield running


@contextmanager
def ray_head(**variables: str) -> Iterator[RunningCluster]:
    """`ray start --head` on ports and in a directory of its own; stopped by its own process, never by `ray stop`.

    variables: of its environment, beside those of this process.
    """
    temp_dir = tempfile.mkdtemp(prefix="s3t-", dir="/tmp")
    port, dashboard, agent = free_ports(3)
    words = ["ray", "start", "--head", "--block", f"--port={port}", f"--num-cpus={CPUS}", f"--temp-dir={temp_dir}"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    words += ["--include-dashboard=true", "--object-store-memory=200000000", "--disable-usage-stats"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"  # else its processes may find another cluster of this machine
    log = Path(temp_dir, "start.log")
    with log.open("w") as out:
        head = subprocess.Popen(
            words, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=REPOSITORY
        )
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", head, log)
        yield RunningCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    finally:
        for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 10)):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(head.pid, number)
                head.wait(seconds)
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture
def joined(running_cluster: RunningCluster) -> Iterator[RunningCluster]:
    """The cluster, with this process connected to it."""
    from cluster.session import session

    with session(RunConfig(address=running_cluster.address)):
        yield running_cluster


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards of generated scenes to train and to evaluate on."""
    directory = tmp_path_factory.mktemp("scenes")
    return scene_shards(directory, 16, seed=0, side=112), scene_shards(directory, 6, seed=1, side=112)


@pytest.fixture(scope="session")
def tiny_settings(tiny_teacher_dir: Path, scenes: tuple[Path, Path]) -> dict[str, Any]:
    """Dotted keys that make any preset a run of seconds."""
    return {
        "teacher.source": str(tiny_teacher_dir),
        "student.vision_width": 16,
        "student.vision_depth": 1,
        "data.train": str(scenes[0]),
        "data.val": str(scenes[1]),
        "data.images_per_batch": 2,
        "data.prompts_per_image": 2,
        "optim.steps": 4,
        "optim.warmup_steps": 0,
        "eval.every_steps": 2,
        "eval.images_per_batch": 4,
        "checkpoint.every_steps": 2,
        "run.log_every_steps": 1,
        "run.loggers": [],
    }


@pytest.fixture
def tiny_run(tiny_settings: dict[str, Any]) -> DistillConfig:
    return with_overrides(load_preset("smoke"), tiny_settings)


def as_words(settings: dict[str, Any]) -> list[str]:
    """The settings as on a command line."""
    return [f"{key}={value}" for key, value in settings.items()]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers, and asks for a token
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within {seconds} s: {log.read_text()}")
