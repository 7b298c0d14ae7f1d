import io
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import pytest

from sam3dist.engine.clock import Clock, TimeSpent
from sam3dist.engine.progress import pace, progress
from sam3dist.engine.signals import sigterm_noted


def test_jobs_get_plain_lines(capsys: pytest.CaptureFixture[str]):
    with progress(20, 4, 0, "small") as shown:
        shown.say("resumed")
        shown.advance(5, 12.34, 75.0)
        shown.say("total 3.2")
    assert capsys.readouterr().out.splitlines() == [
        "[4/20]  resumed",
        "[5/20]  total 3.2  12.3 images/s, 0:01:15 left",
    ]


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]):
    with progress(20, 0, 1, "small") as shown:
        shown.advance(5, 12.34, 75.0)
        shown.say("total 3.2")
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress(20, 0, 0, "small") as shown:
        shown.advance(5, 12.34, 75.0)
        shown.say("total [3.2]")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "total [3.2]" in text
    assert "small" in text
    assert "5/20" in text
    assert "12.3 images/s, 0:01:15 left" in text


def test_pace_counts_days():
    assert pace(3.0, 90000.4) == "3.0 images/s, 1 day, 1:00:00 left"


def test_the_clock_tells_training_from_waiting(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    clock = Clock()
    assert clock.lap() == {"step_seconds": 0.0, "data_wait_seconds": 0.0}
    for seconds in (5.0, 1.0, 1.0):  # the first step is slow
        with clock.wait():
            passes(1.0)
        with clock.step(8):
            passes(seconds)
    passes(4.0)  # an evaluation
    assert clock.images_per_second == 16 / 4
    times = clock.times()
    assert (times["goodput"], times["waiting_share"], times["step_seconds"]) == (7 / 14, 3 / 14, 7 / 3)
    assert (times["useful_seconds"], times["wall_seconds"]) == (7, 14)
    assert clock.lap() == {"step_seconds": 7 / 3, "data_wait_seconds": 1.0}
    with clock.step(8):
        passes(2.0)
    assert clock.lap() == {"step_seconds": 2.0, "data_wait_seconds": 0.0}
    assert clock.seconds_for(4) == 12


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass, on both clocks."""
    now = [1e9]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def make_steps(clock: Clock, steps: int, passes: Callable[[float], None]) -> None:
    """Each of 2 s, after 1 s of waiting."""
    for _ in range(steps):
        with clock.wait():
            passes(1.0)
        with clock.step(8):
            passes(2.0)


def test_lost_steps_restarts_and_the_time_between_them_count_as_lost(pass_time: Callable[[float], None]):
    pass_time(5)
    clock = Clock(began=time.time() - 5)  # its workers started in these
    make_steps(clock, 4, pass_time)
    saved = clock.spent()
    make_steps(clock, 3, pass_time)  # killed before they were saved
    pass_time(60)
    clock = Clock(saved)
    assert clock.times()["goodput"] == 8 / (5 + 12 + 9 + 60)
    pass_time(4)
    make_steps(clock, 5, pass_time)
    times = clock.times()
    wall = 5 + 12 + 9 + 60 + 4 + 15
    assert times["useful_seconds"] == 9 * 2
    assert times["wall_seconds"] == wall
    assert times["goodput"] == 18 / wall
    assert times["waiting_share"] == 9 / wall
    assert times["step_seconds"] == 2
    assert times["began"] == 1e9
    assert clock.lap() == {"step_seconds": 2.0, "data_wait_seconds": 1.0}  # of this process
    assert clock.images_per_second == 8 / 3
    assert TimeSpent(**asdict(clock.spent())) == TimeSpent(1e9, 1e9 + wall, 18.0, 9.0, 9)


def test_a_run_that_is_over_loses_nothing_by_being_looked_at_later_or_extended(pass_time: Callable[[float], None]):
    clock = Clock()
    make_steps(clock, 4, pass_time)
    clock.stop()
    before, saved = clock.times(), clock.spent()
    pass_time(30)  # the last checkpoint
    assert clock.times() == before
    week = 7 * 24 * 3600
    pass_time(week)
    clock = Clock(saved)
    assert clock.times()["goodput"] == before["goodput"] == 8 / 12
    make_steps(clock, 4, pass_time)
    times = clock.times()
    assert (times["goodput"], times["wall_seconds"]) == (16 / 24, 24)
    assert times["began"] + times["wall_seconds"] == time.time()


def test_a_machine_whose_clock_is_behind_gains_nothing(pass_time: Callable[[float], None]):
    clock = Clock()
    make_steps(clock, 4, pass_time)
    saved = clock.spent()
    pass_time(-100)
    assert Clock(saved).times()["goodput"] == 8 / 12


def test_sigterm_is_noted_and_handed_back():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        with sigterm_noted() as arrived:
            assert not arrived()
            signal.raise_signal(signal.SIGTERM)
            assert arrived()
        assert not calls
        signal.raise_signal(signal.SIGTERM)
        assert calls
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_may_ask_but_hears_nothing():
    answers = []

    def ask() -> None:
        with sigterm_noted() as arrived:
            answers.append(arrived())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]
