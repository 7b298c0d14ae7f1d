"""The best of a front trained anew: which, with what, and what is told of it; without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.tune.search import Searcher

from cluster import finalists
from cluster.finalists import FINALISTS, JOBS, InTurn, train_finalists
from cluster.searcher import TRIAL, VALUES
from cluster.trial import MISTAKE, TrialRun
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.config.search import SearchConfig
from sam3dist.errors import NonFiniteError

WIDTH = "student.vision_width"


def point(trial: str, score: float, width: int) -> dict[str, Any]:
    """Of a front, as in report.json."""
    return {
        "trial": trial,
        "score": score,
        "config": {WIDTH: width},
        "miou_all": score,
        "params_millions": 1.0,
        "megabytes": {"int4": 1.0},
    }


FRONT = [point("001", 0.5, 16), point("004", 0.8, 32), point("010", 0.7, 64)]


def searching(**settings: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": {WIDTH: {"choice": [16, 32, 64]}}, "finalists": settings})


def base(**changes: Any) -> TrialRun:
    return TrialRun(with_overrides(DistillConfig(), {"run.seed": 5, "optim.steps": 100, **changes}), "s", None, None)


def ended(job: dict[str, Any], quality: float) -> SimpleNamespace:
    """A result of Tune; one of quality 0 has failed."""
    if not quality:
        return SimpleNamespace(config=job, metrics=None, error=NonFiniteError("a loss is NaN"))
    told = {"before": {"miou_all": 0.1}, "miou_all": quality, "score": quality, CHECKPOINT_PATH_KEY: "/c"}
    return SimpleNamespace(config=job, metrics=told, error=None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The jobs that were to be trained; their qualities are 0.5, 0.6, ... and every sixth fails."""
    jobs: list[dict[str, Any]] = []

    def tuner(trial: TrialRun, run_dir: Path, given: list[dict[str, Any]], steps: int, at_once: int) -> Any:
        jobs.extend(given)
        return SimpleNamespace(fit=lambda: [ended(job, (n + 5) % 10 / 10) for n, job in enumerate(given)])

    monkeypatch.setattr(finalists, "_tuner", tuner)
    return jobs


def test_the_best_of_the_front_train_from_every_seed(asked: list[dict[str, Any]], tmp_path: Path):
    told = train_finalists(searching(count=2, seeds=3, steps=400), base(), tmp_path, FRONT, at_once=2)
    assert [row["trial"] for row in told] == ["004", "010"]  # by score
    assert [job[TRIAL] for job in asked][:3] == ["004-seed5", "010-seed5", "004-seed6"]
    assert asked[0][VALUES] == {WIDTH: 32, "optim.steps": 400, "run.seed": 5}
    best, second = told
    assert [run["metrics"]["miou_all"] for run in best["runs"]] == [0.5, 0.7, 0.9]
    assert best["mean"] == pytest.approx(0.7)
    assert best["std"] == pytest.approx(0.2)
    assert best["of_the_search"] == 0.8
    assert best["runs"][2]["run_dir"] == str(tmp_path / FINALISTS / "004-seed7")
    assert [run.get("reason") for run in second["runs"]] == [None, None, "a loss is NaN"]
    assert second["mean"] == pytest.approx(0.7)  # of 0.6 and 0.8
    assert json.dumps(told)


def test_no_finalists_are_asked_for_and_none_train(asked: list[dict[str, Any]], tmp_path: Path):
    assert train_finalists(searching(), base(), tmp_path, FRONT, at_once=2) == []
    assert asked == []


def test_a_finalist_trains_as_long_as_a_trial_unless_told(asked: list[dict[str, Any]], tmp_path: Path):
    train_finalists(searching(count=1), base(), tmp_path, FRONT, at_once=1)
    assert asked == [{TRIAL: "004-seed5", VALUES: {WIDTH: 32, "optim.steps": 100, "run.seed": 5}}]


def test_the_list_is_suggested_once_and_goes_on_after_a_crash(tmp_path: Path):
    jobs = [{TRIAL: name, VALUES: {}} for name in "abc"]
    first = InTurn(jobs)
    assert first.suggest("x") == jobs[0]
    assert first.suggest("y") == jobs[1]
    first.save(str(tmp_path / "state"))
    second = InTurn(jobs)
    second.restore(str(tmp_path / "state"))
    assert second.suggest("z") == jobs[2]
    assert second.suggest("w") == Searcher.FINISHED


def test_a_mistake_of_before_is_forgotten_and_the_jobs_are_noted(tmp_path: Path):
    mistake = tmp_path / FINALISTS / "004-seed5" / MISTAKE
    mistake.parent.mkdir(parents=True)
    mistake.touch()
    jobs = [{TRIAL: "004-seed5", VALUES: {WIDTH: 32}}]
    finalists._tuner(base(), tmp_path, jobs, 100, 1)
    assert not mistake.exists()
    assert json.loads((tmp_path / FINALISTS / JOBS).read_text()) == jobs
