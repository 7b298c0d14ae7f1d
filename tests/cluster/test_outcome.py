"""What a search tells while it runs, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial

from cluster.outcome import Narrator, search_times, summary
from cluster.searcher import TRIAL, VALUES
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.config.search import SearchConfig
from sam3dist.errors import DataError
from sam3dist.insight import why_empty
from sam3dist.models.size import ModelSize

STEPS = 100
TEACHER = ModelSize(10.0, {"int4": 6.0}, {})
ERRORS = (KeyError("a bug"), DataError("shards/7.parquet: unreadable."))


def trial(name: str, step: int = 0, status: str = Trial.RUNNING) -> Trial:
    made = Trial("trial", trial_id=name, config={TRIAL: name, VALUES: {"distillation.temperature": 2.0}}, stub=True)
    made.status = status
    made.run_metadata.last_result = {"step": step}
    return made


def result(step: int, **more: object) -> dict:
    measured = {"miou_all": 0.5, "params_millions": 1.25, "score": 0.625, "samples_per_second": 12.34}
    return {"step": step, **measured, **more}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, for the test to set."""
    clock = [0.0]
    monkeypatch.setattr("cluster.outcome.time.monotonic", lambda: clock[0])
    return clock


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_each_report_is_a_line_with_the_pace_and_what_is_left(now: list[float], capsys: pytest.CaptureFixture[str]):
    narrator = Narrator("miou_all", STEPS, trials=4)
    first, second = trial("000"), trial("001")
    narrator.on_trial_start(0, [first], first)
    narrator.on_trial_start(0, [first, second], second)
    now[0] = 60
    narrator.on_trial_result(0, [first, second], first, result(50))
    # 0.83 steps/s each, two at a time; 50 and 100 steps of these and 200 of two to come.
    told = "trial 000  step 50/100  miou_all 0.5000  params 1.250 M  score 0.6250  12.3 images/s"
    assert last_line(capsys) == f"{told}  search: 3 min 30 s left"
    now[0] = 61
    narrator.on_trial_result(0, [first, second], first, result(50))
    assert capsys.readouterr().out == ""  # the last one again


def test_trials_to_come_go_as_far_as_those_that_are_over(now: list[float], capsys: pytest.CaptureFixture[str]):
    narrator = Narrator("miou_all", STEPS, trials=5)
    stopped, done = trial("000", 20, Trial.TERMINATED), trial("001", STEPS, Trial.TERMINATED)
    resumed = trial("002", 40)  # from before a crash, as the two above
    narrator.on_trial_start(0, [stopped, done, resumed], resumed)
    now[0] = 30
    narrator.on_trial_result(0, [stopped, done, resumed], resumed, result(70))
    assert last_line(capsys).endswith("search: 2 min 30 s left")  # 30 steps, and 60 of each to come, at 1 step/s
    now[0] = 60
    last = [stopped, done, resumed, *(trial(name, STEPS, Trial.TERMINATED) for name in ("003", "004"))]
    narrator.on_trial_result(0, last, resumed, result(STEPS))
    assert last_line(capsys).endswith("12.3 images/s")  # nothing is left


def test_a_trial_that_asha_stops_says_nothing_of_the_rest(now: list[float], capsys: pytest.CaptureFixture[str]):
    narrator = Narrator("miou_all", STEPS, trials=2)
    only = trial("000")
    narrator.on_trial_start(0, [only], only)
    now[0] = 10
    narrator.on_trial_result(0, [only], only, result(50, done=True))
    assert "left" not in last_line(capsys)


def test_the_goodput_of_a_search_counts_idle_places_and_failed_trials_as_lost():
    def row(state: str, began: float, wall: float, useful: float) -> dict:
        return {"state": state, "began": began, "wall_seconds": wall, "useful_seconds": useful}

    trials = [row("done", 100, 50, 30), row("stopped", 105, 20, 10), row("failed", 130, 60, 55)]
    trials += [{"state": "refused"}, {"state": "failed", "began": None, "useful_seconds": None}]
    # Two side by side from 100 until 190.
    assert search_times(trials, 2) == {"goodput": 40 / 180, "useful_seconds": 40, "wall_seconds": 90}
    assert search_times([{"state": "refused"}], 2) == dict.fromkeys(("goodput", "useful_seconds", "wall_seconds"))


def ended(name: str, step: int, quality: float, **told: float) -> SimpleNamespace:
    """A trial as Tune gives it back."""
    metrics = {"before": {"miou_all": 0.1}, "miou_all": quality, "params_millions": 1.0, "size": 1.0, "step": step}
    return SimpleNamespace(config={TRIAL: name, VALUES: {}}, metrics={**metrics, "score": quality, **told}, error=None)


def told_of(*results: SimpleNamespace, **search: float) -> dict:
    run = with_overrides(DistillConfig(), {"optim.steps": STEPS})
    space = {"space": {"distillation.temperature": {"uniform": [1, 2]}}}
    return summary(results, [], SearchConfig.model_validate({**space, **search}), run, TEACHER, concurrent=1)


def test_without_a_trial_that_came_to_its_end_the_front_is_empty_and_says_so():
    found = told_of(ended("000", 40, 0.5), ended("001", 20, 0.4))
    assert (found["front"], found["best"], found["hypervolume"]) == ([], None, 0.0)
    assert found["states"] == {"stopped": 2}
    assert "2 stopped" in why_empty(found["trials"])


def test_a_trial_above_the_limit_of_latency_is_refused_however_good():
    found = told_of(
        ended("000", STEPS, 0.9, latency_ms=80.0), ended("001", STEPS, 0.5, latency_ms=20.0), max_latency_ms=50.0
    )
    assert [point["trial"] for point in found["front"]] == ["001"]
    assert found["trials"][0]["reason"] == "80.0 ms are above max_latency_ms=50."


def test_a_mistake_of_all_trials_is_raised_rather_than_a_bug():
    failed = [SimpleNamespace(config={TRIAL: "000", VALUES: {}}, metrics=None, error=error) for error in ERRORS]
    with pytest.raises(DataError, match="unreadable"):
        told_of(*failed)
    found = told_of(*failed, ended("001", STEPS, 0.5))
    assert found["states"] == {"failed": 2, "done": 1}
