import re
import sys

import pytest

from sam3dist.verbs import console


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = [0.0]
    monkeypatch.setattr("sam3dist.verbs.console.time.monotonic", lambda: now[0])
    with console.progress("images") as update:
        for done in range(1, 31):
            now[0] += 1.0
            update(done, 30)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "images: 10 of 30 (1.0/s, 20.0 s left)",
        "images: 20 of 30 (1.0/s, 10.0 s left)",
        "images: 30 of 30 (1.0/s)",
    ]


def test_the_parts_of_a_work_have_a_pace_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = [0.0]
    monkeypatch.setattr("sam3dist.verbs.console.time.monotonic", lambda: now[0])
    with console.stages() as update:
        for label, done, seconds in (("bytes", 100, 1), ("bytes", 200, 2), ("images", 10, 13), ("images", 20, 23)):
            now[0] = seconds
            update(label, done, {"bytes": 200, "images": 30}[label])
    assert capsys.readouterr().err.splitlines() == [
        "bytes: 200 of 200 (100.0/s)",
        "images: 10 of 30 (0.9/s, 22.0 s left)",  # 10 in the 11 s since the bytes were done
        "images: 20 of 30 (1.0/s, 10.5 s left)",
    ]


def test_a_terminal_gets_a_bar_with_pace_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = [0.0]
    monkeypatch.setattr("sam3dist.verbs.console.time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("images") as update:
        now[0] = 10.0
        update(30, 40)
    drawn = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"images .* 30/40 +3\.0/s, 3\.3 s left", drawn), drawn


def test_tables_put_numbers_right_and_dashes_for_what_is_not_known(capsys: pytest.CaptureFixture[str]):
    console.table(("metric", "value"), [("a", 0.123456), ("b", None), ("c", 12)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows == ["│ a      │ 0.1235 │", "│ b      │      – │", "│ c      │     12 │"]
