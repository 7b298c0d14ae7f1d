"""Who is stopped at a rung, and that a crash does not change it."""

from pathlib import Path
from types import SimpleNamespace

from ray.tune.schedulers import TrialScheduler

from cluster.halving import RememberingAsha


def asha(memory: Path) -> RememberingAsha:
    return RememberingAsha(memory, steps=100, grace=25, reduction_factor=2)


def decisions(scheduler: RememberingAsha, *told: tuple[str, int, float]) -> list[str]:
    found = []
    for name, step, score in told:
        trial = SimpleNamespace(trial_id=name)
        if name not in scheduler._trial_info:
            scheduler.on_trial_add(None, trial)
        found.append(scheduler.on_trial_result(None, trial, {"step": step, "score": score}))
    return found


GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def test_rungs_double_from_the_grace_and_leave_the_last_step_out(tmp_path: Path):
    assert [step for step, _ in asha(tmp_path / "rungs").rungs] == [50, 25]


def test_below_the_median_of_its_rung_a_trial_stops(tmp_path: Path):
    found = decisions(asha(tmp_path / "rungs"), ("a", 25, 0.5), ("b", 25, 0.7), ("c", 25, 0.59), ("d", 25, 0.61))
    assert found == [GO, GO, STOP, GO]  # the medians before each: none, 0.5, 0.6, 0.59


def test_nobody_is_stopped_before_the_grace_or_at_the_end(tmp_path: Path):
    scheduler = asha(tmp_path / "rungs")
    assert decisions(scheduler, ("a", 24, 0.9), ("a", 25, 0.9), ("a", 50, 0.9), ("a", 100, 0.9)) == [GO] * 4
    assert decisions(scheduler, ("b", 24, 0.1)) == [GO]
    assert decisions(scheduler, ("c", 25, 0.95), ("c", 50, 0.95), ("c", 100, 0.1)) == [GO] * 3


def test_after_a_crash_trials_are_held_to_those_before(tmp_path: Path):
    memory = tmp_path / "rungs"
    assert decisions(asha(memory), ("a", 25, 0.9)) == [GO]
    assert decisions(asha(memory), ("b", 25, 0.5)) == [STOP]
    assert decisions(asha(tmp_path / "others"), ("b", 25, 0.5)) == [GO]
