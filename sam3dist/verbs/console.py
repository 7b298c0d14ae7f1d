"""What a person sees while a verb works and when it is done: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sam3dist.wording import duration, shown

LINE_EVERY_S = 10.0
"""Pause between plain lines where there is no terminal to draw a bar in, as in the log of a job."""


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, total): a bar with pace and time left on a terminal, else a line now and then."""
    with stages() as update:
        yield lambda done, total: update(label, done, total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """As `progress`, for work of several parts one after the other: a function to call with (label, done, total)."""
    if sys.stderr.isatty():
        with _bars() as update:
            yield update
        return
    pace, last = _Pace(), time.monotonic()

    def line(label: str, done: int, total: int) -> None:
        nonlocal last
        said, now = pace.of(label, done, total), time.monotonic()
        if done < total and now - last < LINE_EVERY_S:
            return
        last = now
        print(f"{label}: {done} of {total} ({said})", file=sys.stderr, flush=True)

    yield line


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    pace, tasks = _Pace(), {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def update(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total, pace="")
            bars.update(tasks[label], completed=done, total=total, pace=pace.of(label, done, total))

        yield update


class _Pace:
    """How fast the present part of the work goes; it began where the one before was last heard of."""

    def __init__(self) -> None:
        self.label = ""
        self.began = self.heard = time.monotonic()

    def of(self, label: str, done: int, total: int) -> str:
        """ "12.3/s, 3 min 20 s left"."""
        if label != self.label:
            self.label, self.began = label, self.heard
        self.heard = time.monotonic()
        rate = done / max(self.heard - self.began, 1e-9)
        return f"{rate:.1f}/s" + (f", {duration((total - done) / rate)} left" if 0 < done < total else "")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print rows under their columns; numbers to the right, None and NaN as a dash, 4 significant digits."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold")
    for index, name in enumerate(columns):
        numeric = all(not isinstance(row[index], str) for row in rows)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    # A job's log has no width of its own; 80 columns would break the tables of a search.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(drawn)
