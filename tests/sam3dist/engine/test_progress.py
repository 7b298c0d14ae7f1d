import io
import re
import signal
import threading
import time

import pytest

from sam3dist.engine.clock import Clock
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
    for seconds in (5.0, 1.0, 1.0):  # the first step is slow
        with clock.wait():
            passes(1.0)
        with clock.step(8):
            passes(seconds)
    passes(4.0)  # an evaluation
    assert clock.images_per_second == 16 / 4
    assert clock.goodput == 7 / 14
    assert clock.seconds_for(3) == 10


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
