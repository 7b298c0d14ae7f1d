"""One run on the cluster: two workers, a checkpoint anyone can load, a kill, a stop, and what a person is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group, remove_placement_group

from cluster.evaluate import run_evaluation
from cluster.session import session
from cluster.trainer import CHECKPOINTS, run_training
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.engine.checkpoint import read_state
from sam3dist.engine.folder import CheckpointFolder
from sam3dist.engine.loggers import read_history
from sam3dist.errors import CheckpointError, ResourceError
from tests.cluster.conftest import CPUS

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def start(*words: str, out: Path) -> subprocess.Popen[bytes]:
    """`python -m cluster.train` with these words, in a process of its own."""
    with out.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.train", *words], cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT
        )


def as_words(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def registered(run_dir: Path) -> list[str]:
    """The checkpoints that the run would resume from."""
    return [entry.name for entry in CheckpointFolder(run_dir / CHECKPOINTS).entries()]


def wait_for_checkpoint(process: subprocess.Popen[bytes], run_dir: Path, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not registered(run_dir):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_two_workers_train_a_student_that_one_worker_measures_alike(
    joined: object, tiny_run: DistillConfig, tmp_path: Path
):
    result = run_training(with_overrides(tiny_run, {"strategy.num_workers": 2}), tmp_path)
    assert result["complete"]
    assert result["step"] == 4
    assert result["metrics"]["num_pairs"] == result["before"]["num_pairs"] > 0
    assert result["megabytes"]["fp32"] == pytest.approx(4 * result["params_millions"])
    assert 0 < result["goodput"] < 1
    assert result["rejected"] == {}
    state = read_state(Path(result["checkpoint"]))
    assert (state.step, state.batches, state.images, state.world_size) == (4, 4, 16, 2)
    steps = [line["step"] for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4]

    # The student on disk, loaded by another path and measured by one worker on all the rows.
    found = run_evaluation(tiny_run, result["checkpoint"], str(tiny_run.data.val), tmp_path / "evaluation")
    assert found["metrics"] == pytest.approx(result["metrics"], nan_ok=True)
    assert found["params_millions"] == result["params_millions"]
    none_usable = {"data.max_pixels": 9, "data.max_rejected_share": 1, "strategy.num_workers": 2}
    config = with_overrides(tiny_run, none_usable)
    found = run_evaluation(config, result["checkpoint"], str(tiny_run.data.val), tmp_path / "none")
    assert found["rejected"] == {"too many pixels": 6}, "of both workers"

    # One worker goes on alone, with other batches, and the checkpoint knows both groups.
    fewer = {"optim.steps": 7, "data.images_per_batch": 3}
    result = run_training(with_overrides(tiny_run, fewer), tmp_path)
    state = read_state(Path(result["checkpoint"]))
    assert (state.step, state.batches, state.world_size) == (7, 7, 1)
    begun, rest = state.segments
    assert (begun.world_size, begun.images_per_batch, begun.batches) == (2, 2, 4)
    assert (rest.world_size, rest.images_per_batch, rest.batches) == (1, 3, 3)
    assert state.images == 16 + 3 * 3

    # Another shape in the same directory: told at once, by name, and config.yaml stays that of the run.
    config_file = tmp_path / "config.yaml"
    before = config_file.read_text()
    with pytest.raises(CheckpointError, match=r"student.vision_width=32: .*step-.* with student.vision_width=16"):
        run_training(with_overrides(tiny_run, {"student.vision_width": 32, "optim.steps": 8}), tmp_path)
    assert config_file.read_text() == before


@pytest.mark.long
def test_a_killed_run_goes_on_and_a_stopped_one_leaves_a_checkpoint(
    running_cluster: Any, tiny_settings: dict[str, Any], tmp_path: Path
):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    settings = {**tiny_settings, "optim.steps": 2000, "eval.every_steps": 1000, "run.dir": run_dir}
    words = ["smoke", *as_words({**settings, "run.address": running_cluster.address})]

    began = time.time()
    first = start(*words, out=log)
    wait_for_checkpoint(first, run_dir, log)
    lost_s = time.time() - (run_dir / "config.yaml").stat().st_mtime  # from when the driver began to train
    first.kill()
    first.wait(30)
    before = set(registered(run_dir))
    killed_at = max(read_state(run_dir / CHECKPOINTS / name).step for name in before)

    second = start(*words, out=log)
    deadline = time.monotonic() + 120
    while not set(registered(run_dir)) - before:
        assert second.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 128 + signal.SIGTERM, log.read_text()
    report = json.loads((run_dir / "report.json").read_text())
    assert not report["complete"]
    state = read_state(Path(report["checkpoint"]))
    assert killed_at < state.step < 2000
    steps = [line["step"] for line in read_history(run_dir / "history.jsonl") if line["kind"] == "train"]
    assert steps == list(range(1, state.step + 1)), "each step once, though the run was killed between"
    assert state.images == 2 * state.step

    # Each step once, too, in the time that counts, and all of the time since the first start in the rest.
    useful = sum(line["step_seconds"] for line in read_history(run_dir / "history.jsonl") if line["kind"] == "train")
    assert report["useful_seconds"] == pytest.approx(useful)
    assert report["goodput"] == pytest.approx(useful / report["wall_seconds"])
    assert lost_s < report["wall_seconds"] < time.time() - began


def test_a_cluster_that_stays_busy_is_given_up_in_one_line(
    running_cluster: Any, tiny_run: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    config = with_overrides(tiny_run, {"run.address": running_cluster.address})
    with session(config.run):
        others = placement_group([{"CPU": CPUS}])
        ray.get(others.ready(), timeout=30)
        try:
            with pytest.raises(ResourceError, match="the workers did not start"):
                run_evaluation(config, str(config.teacher.source), str(config.data.val), tmp_path / "evaluation")
            with pytest.raises(ResourceError, match="the workers did not start"):
                run_training(config, tmp_path / "run")
        finally:
            remove_placement_group(others)


def test_a_cluster_too_small_is_said_in_one_line_within_seconds(tiny_settings: dict[str, Any], tmp_path: Path):
    """Also the one test that lets a job start, and stop, a cluster of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    asked = as_words({**tiny_settings, "strategy.num_workers": 5, "run.num_cpus": 2, "run.dir": tmp_path})
    started = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-m", "cluster.train", "smoke", *asked],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("sam3dist: ")]
    assert len(lines) == 1
    assert "5 workers with 1 CPU each are asked; the cluster has 1 node with 2 CPU" in lines[0]
    assert "strategy.num_workers=2" in lines[0]
    assert "Traceback" not in found.stderr
    assert time.monotonic() - started < 60
