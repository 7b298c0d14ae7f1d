"""A search goes on: through kills of its driver at any moment, a trial whose process dies, and one that gives NaN."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from ray.util.state import list_actors

from cluster.preflight import free_cpus, held_placement_groups
from cluster.search import JOURNAL, run_search
from cluster.searcher import study_storage
from sam3dist.config.load import load_search
from sam3dist.config.search import SearchConfig
from sam3dist.engine.loggers import read_history
from tests.cluster.conftest import REPOSITORY, RunningCluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]  # four minutes
KILLS, TRIALS, STEPS = 6, 4, 4
TEMPERATURE, ALPHA = "distillation.temperature", "distillation.alpha"


def write_space(folder: Path, settings: dict[str, Any], **search: Any) -> Path:
    space = {
        "name": "tiny",
        "preset": "smoke",
        "overrides": {**settings, "run.dir": str(folder / "run")},
        "space": {TEMPERATURE: {"uniform": [1.0, 6.0]}},
        "trials": TRIALS,
        "max_concurrent": 1,
        "sampler": "random",
        "asha": {"enabled": False},
        **search,
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    return path


def states(search: SearchConfig, run_dir: Path) -> dict[str, TrialState]:
    """Of all trials that Optuna knows, by their name."""
    if not (run_dir / JOURNAL).is_file():
        return {}
    study = optuna.load_study(study_name=search.name, storage=study_storage(search, run_dir / JOURNAL))
    return {f"{trial.number:03d}": trial.state for trial in study.get_trials(deepcopy=False)}


def test_killed_at_random_moments_a_search_loses_no_trial_and_repeats_none(
    running_cluster: RunningCluster, tiny_settings: dict[str, Any], tmp_path: Path
):
    space, run_dir, log = write_space(tmp_path, tiny_settings), tmp_path / "run", tmp_path / "log"
    search, rng, kills = load_search(str(space)), random.Random(1), 0
    finished: dict[str, int] = {}  # when the curve of each was last written
    while True:
        with log.open("ab") as out:
            driver = subprocess.Popen(
                [sys.executable, "-m", "cluster.tune", str(space)],
                cwd=REPOSITORY,
                env={**os.environ, "RAY_ADDRESS": running_cluster.address},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            code = driver.wait(rng.uniform(10, 60) if kills < KILLS else 600)
            break
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait(30)
            kills += 1
        for name, state in states(search, run_dir).items():
            if state == TrialState.COMPLETE:
                written = (run_dir / "trials" / name / "history.jsonl").stat().st_mtime_ns
                assert finished.setdefault(name, written) == written, f"trial {name} was run again"
    assert code == 0, log.read_text()
    assert kills > 1
    print(f"{kills} kills, {len(finished)} trials had ended before the last of them")

    trials = json.loads((run_dir / "report.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["done"] * TRIALS
    assert {trial["trial"] for trial in trials} >= finished.keys()
    for trial in trials:
        curve = read_history(run_dir / "trials" / trial["trial"] / "history.jsonl")
        assert [line["step"] for line in curve if line["kind"] == "train"] == list(range(1, STEPS + 1))
    told = [name for name, state in states(search, run_dir).items() if state == TrialState.COMPLETE]
    assert told == sorted(trial["trial"] for trial in trials)


def test_a_trial_that_dies_goes_on_and_one_of_nan_fails_alone(
    joined: object, tiny_settings: dict[str, Any], tmp_path: Path
):
    points = [{TEMPERATURE: 2.0, ALPHA: alpha} for alpha in (0.5, 3e38, 0.6)]  # the loss of the second is no number
    settings = {**tiny_settings, "optim.steps": STEPS, "optim.max_skipped_steps": 0}
    spans = {TEMPERATURE: {"uniform": [1.0, 6.0]}, ALPHA: {"loguniform": [0.1, 3e38]}}
    space = write_space(tmp_path, settings, space=spans, seeds=points, trials=len(points))
    cpus, groups, run_dir = free_cpus(), held_placement_groups(), tmp_path / "run"
    victims: list[int] = []
    threading.Thread(target=kill_the_first_trial, args=(run_dir, victims), daemon=True).start()

    search = load_search(str(space))
    report = run_search(search)
    assert victims, "the process of a trial was killed"
    trials = {trial["trial"]: trial for trial in report["trials"]}
    assert {name: trial["state"] for name, trial in trials.items()} == {"000": "done", "001": "failed", "002": "done"}
    assert "nan" in trials["001"]["reason"].lower() or "finite" in trials["001"]["reason"]
    assert [state.name for state in states(search, run_dir).values()] == ["COMPLETE", "FAIL", "COMPLETE"]
    curve = read_history(run_dir / "trials" / "000" / "history.jsonl")
    assert [line["step"] for line in curve if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert {point["trial"] for point in report["front"]} <= {"000", "002"}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (free_cpus() < cpus or held_placement_groups() - groups):
        time.sleep(0.5)
    assert free_cpus() == cpus
    assert held_placement_groups() <= groups


def kill_the_first_trial(run_dir: Path, victims: list[int]) -> None:
    """kill -9 of the process in which Tune runs the first trial, once that has trained a step."""
    history = run_dir / "trials" / "000" / "history.jsonl"
    while not (history.is_file() and '"train"' in history.read_text()):
        time.sleep(0.1)
    for actor in list_actors(filters=[("state", "=", "ALIVE")], detail=True):
        if actor.class_name == "ImplicitFunc":
            os.kill(actor.pid, signal.SIGKILL)
            victims.append(actor.pid)
