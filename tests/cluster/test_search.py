"""A search as a job: stopped and refused trials, the front, and every CPU free afterwards."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import tune
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from cluster.preflight import free_cpus, held_placement_groups
from cluster.search import run_search, tidy
from cluster.searcher import TRIAL
from cluster.submit import submit
from sam3dist.config.distill import DistillConfig
from sam3dist.config.search import SearchConfig
from sam3dist.config.space import Choice
from sam3dist.config.submission import SubmitSettings
from sam3dist.engine.folder import CheckpointFolder, Entry
from sam3dist.errors import ConfigError
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.size import model_size
from tests.sam3dist.promised import assert_promised

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH = "student.vision_width"


def write_space(folder: Path, settings: dict[str, Any]) -> Path:
    """A search of four trials, one after the other: of the first three, every larger student falls behind."""
    space = {
        "name": "tiny",
        "preset": "smoke",
        "overrides": {
            **settings,
            # Quality stays what it is, so that size decides and the test knows who is stopped.
            "optim.learning_rate": 1e-9,
            "optim.weight_decay": 0.0,
            "objective.size_weight": 1.0,
            "run.dir": str(folder / "run"),
        },
        "space": {WIDTH: {"choice": [16, 24, 32, 64, 96]}, "distillation.temperature": {"uniform": [1.0, 6.0]}},
        "seeds": [{WIDTH: width, "distillation.temperature": 2.0} for width in (24, 32, 64, 96, 16)],
        "trials": 3,
        "max_concurrent": 1,
        "finalists": {"count": 1, "steps": 2},
        "sampler": "tpe",
        "asha": {"grace_share": 0.5},
        "max_params_millions": 0.3,
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    return path


def kill_when(log: Path, line: str, saved: Path, trial: str, words: list[str], address: str) -> None:
    """Start `python -m cluster.tune`, and kill it once the log has the line and Tune has saved the trial."""
    with log.open("wb") as out:
        driver = subprocess.Popen(
            [sys.executable, "-m", "cluster.tune", *words],
            cwd=REPOSITORY,
            env={**os.environ, "RAY_ADDRESS": address},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 240
    while line not in log.read_text() or not any(trial in file.read_text() for file in saved.glob("experiment_state*")):
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    driver.kill()
    driver.wait(30)


@pytest.mark.slow
def test_a_killed_search_is_submitted_again_ends_well_and_gives_everything_back(
    running_cluster: Any, joined: object, tiny_settings: dict[str, Any], tmp_path: Path
):
    cpus, groups = free_cpus(), held_placement_groups()
    space, run_dir = write_space(tmp_path, tiny_settings), tmp_path / "run"
    kill_when(
        tmp_path / "log", "trial 002  starts", run_dir / "tune", '\\"002\\"', [str(space)], running_cluster.address
    )
    finished = run_dir / "trials" / "001" / "history.jsonl"
    untouched = finished.stat().st_mtime_ns

    out = io.StringIO()
    here = SubmitSettings(working_dir=str(REPOSITORY))
    code = submit(["tune", str(space)], running_cluster.dashboard, here, out=out)
    log = out.getvalue()
    assert code == 0, log
    assert finished.stat().st_mtime_ns == untouched, "a finished trial was run again"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (free_cpus() < cpus or held_placement_groups() - groups):
        time.sleep(0.5)
    assert free_cpus() == cpus
    assert held_placement_groups() <= groups

    report = json.loads((run_dir / "report.json").read_text())
    assert report["verb"] == "tune"
    assert_promised(report)
    trials = {trial["trial"]: trial for trial in report["trials"]}
    states = {name: (trial["config"][WIDTH], trial["state"]) for name, trial in trials.items()}
    assert states == {
        "000": (24, "refused"),
        "001": (32, "done"),
        "002": (64, "stopped"),  # by the score of a trial that ended before the kill
        "003": (96, "refused"),
        "004": (16, "done"),
    }
    assert "use 16 or 32" in trials["000"]["reason"]
    assert "max_params_millions=0.3" in trials["003"]["reason"]
    assert trials["002"]["step"] == 2
    assert [point["trial"] for point in report["front"]] == ["004"]
    assert report["best"]["trial"] == "004"
    assert report["hypervolume"] > 0
    assert report["goodput"] == pytest.approx(report["useful_seconds"] / report["wall_seconds"])  # one at a time
    counted = [trials[name]["useful_seconds"] for name in ("001", "002", "004")]
    assert report["useful_seconds"] == pytest.approx(sum(counted))
    assert min(counted) > 0
    student = load_segmenter(report["best"]["checkpoint"])
    assert model_size(student.net.config).params_millions == pytest.approx(report["best"]["params_millions"])
    assert "trial 002  stopped" in log
    assert (run_dir / "config.yaml").is_file()
    assert "images/s" in log
    assert log.count("trial 004  step 4/4") == 1

    (finalist,) = report["finalists"]
    (again,) = finalist["runs"]
    assert (finalist["trial"], again["seed"]) == ("004", 0)
    assert again["metrics"].keys() == trials["004"]["metrics"].keys()
    assert finalist["mean"] == again["metrics"]["miou_all"]
    assert (Path(again["checkpoint"]) / "student").is_dir()
    assert "trial 004-seed0  step 2/2" in log

    kept = {part: {path.parts[-4] for path in run_dir.glob(f"trials/*/*/*/{part}")} for part in ("student", "training")}
    assert kept == {"student": {"001", "002", "004"}, "training": {"004"}}
    assert submit(["tune", str(space)], running_cluster.dashboard, here, out=io.StringIO()) == 0
    repeated = json.loads((run_dir / "report.json").read_text())
    for key in ("trials", "front", "best", "hypervolume", "finalists"):
        assert repeated[key] == report[key]
    assert finished.stat().st_mtime_ns == untouched

    # Another question in the same directory would mix two answers. Asked by Ray's own command, whose code is 0 or 1.
    job = ["python", "-m", "cluster.tune", str(space), "trials=4"]
    other = subprocess.run(
        ["ray", "job", "submit", "--address", running_cluster.dashboard, "--working-dir", str(REPOSITORY), "--", *job],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert other.returncode == 1, other.stdout
    assert "holds another search" in other.stdout


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("space: {a: {choice: [1]}}\nold: 1", "search.yaml: old: no such key; .*choose another run.dir"),
        ("name: [damaged", "search.yaml: not valid YAML"),
        ("name: x\nspace: {optim.steps: {choice: [1]}}\n", "holds another search, see its search.yaml"),
    ],
)
def test_a_search_file_that_is_old_damaged_or_anothers_is_told_in_one_line(held: str, said: str, tmp_path: Path):
    (tmp_path / "search.yaml").write_text(held)
    search = SearchConfig(space={"optim.steps": Choice(choice=(1, 2))})
    with pytest.raises(ConfigError, match=said) as caught:
        run_search(search, tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "search.yaml").read_text() == held


def test_trials_that_are_over_lose_what_was_cut_short_and_off_the_front_their_training_state(tmp_path: Path):
    statuses = {"000": "TERMINATED", "001": "TERMINATED", "002": "ERROR", "003": "RUNNING", "004": "PENDING"}
    saved, storage = [], StorageContext(str(tmp_path), "tune")
    for name, status in statuses.items():
        trial = Trial("trial", config={TRIAL: name}, stub=True, storage=storage)
        trial.placement_group_factory = tune.PlacementGroupFactory([{"CPU": 1}])
        trial.set_status(status)
        saved.append(trial.get_json_state())
        folder = CheckpointFolder(tmp_path / "trials" / name / "checkpoints")
        checkpoint = folder.begin("step-00000002")
        files = [checkpoint / part / "file" for part in ("student", "training")]
        for file in files:
            file.parent.mkdir()
            file.touch()
        folder.add("step-00000002", checkpoint, files, 0)
        folder.publish(Entry("step-00000002", 2), parts=1, keep=1)
        (folder.begin("step-00000004") / "cut short").touch()
    (tmp_path / "tune" / "experiment_state-2026-01-01_00-00-00.json").write_text(json.dumps({"trial_data": saved}))
    tidy(DistillConfig(), tmp_path, front={"001"})

    def having(part: str) -> list[str]:
        return sorted(path.parts[-5] for path in tmp_path.glob(f"trials/*/checkpoints/*/{part}/file"))

    assert having("training") == ["001", "002", "003", "004"]
    assert having("student") == list(statuses)
    cut_short = tmp_path.glob("trials/*/checkpoints/.*/cut short")
    assert sorted(path.parts[-4] for path in cut_short) == ["002", "003", "004"]
