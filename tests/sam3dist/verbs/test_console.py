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


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("images") as update:
        update(3, 4)
    assert "images" in capsys.readouterr().err


def test_tables_put_numbers_right_and_dashes_for_what_is_not_known(capsys: pytest.CaptureFixture[str]):
    console.table(("metric", "value"), [("a", 0.123456), ("b", None), ("c", 12)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows == ["│ a      │ 0.1235 │", "│ b      │      – │", "│ c      │     12 │"]
