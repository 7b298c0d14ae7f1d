"""A search as a job: stopped and refused trials, the front, and every CPU free afterwards."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.preflight import free_cpus, held_placement_groups
from cluster.submit import submit
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.size import model_size

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH = "student.vision_width"
pytestmark = pytest.mark.slow


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
        "sampler": "tpe",
        "asha": {"grace_share": 0.5},
        "max_params_millions": 0.3,
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    return path


def test_a_submitted_search_ends_well_and_gives_everything_back(
    running_cluster: Any, joined: object, tiny_settings: dict[str, Any], tmp_path: Path
):
    cpus, groups = free_cpus(), held_placement_groups()
    out = io.StringIO()
    space = write_space(tmp_path, tiny_settings)
    code = submit(["tune", str(space)], running_cluster.dashboard, working_dir=REPOSITORY, out=out)
    log = out.getvalue()
    assert code == 0, log
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (free_cpus() < cpus or held_placement_groups() - groups):
        time.sleep(0.5)
    assert free_cpus() == cpus
    assert held_placement_groups() <= groups

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    trials = {trial["trial"]: trial for trial in report["trials"]}
    states = {name: (trial["config"][WIDTH], trial["state"]) for name, trial in trials.items()}
    assert states == {
        "000": (24, "refused"),
        "001": (32, "done"),
        "002": (64, "stopped"),
        "003": (96, "refused"),
        "004": (16, "done"),
    }
    assert "use 16 or 32" in trials["000"]["reason"]
    assert "max_params_millions=0.3" in trials["003"]["reason"]
    assert trials["002"]["step"] == 2
    assert [point["trial"] for point in report["front"]] == ["004"]
    assert report["best"]["trial"] == "004"
    assert report["hypervolume"] > 0
    student = load_segmenter(report["best"]["checkpoint"])
    assert model_size(student.net.config).params_millions == pytest.approx(report["best"]["params_millions"])
    assert "trial 002  stopped" in log
    assert log.count("trial 004  step 4/4") == 1


def test_a_broken_job_gives_the_exit_code_of_its_mistake(running_cluster: Any, tmp_path: Path):
    out = io.StringIO()
    assert submit(["tune", "nowhere.yaml"], running_cluster.dashboard, working_dir=REPOSITORY, out=out) == 2
    assert "sam3dist: nowhere.yaml: no such search space" in out.getvalue()
