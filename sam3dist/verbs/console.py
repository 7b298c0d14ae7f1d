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
    """A function to call with (done, total): a bar with the time left on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with _bar(label) as update:
            yield update
        return
    started = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < LINE_EVERY_S:
            return
        last = now
        rate = done / max(now - started, 1e-9)
        left = f", {duration((total - done) / rate)} left" if 0 < done < total else ""
        print(f"{label}: {done} of {total} ({rate:.1f}/s{left})", file=sys.stderr, flush=True)

    yield line


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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
