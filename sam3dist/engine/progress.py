"""What a person sees while a student trains: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol


class Progress(Protocol):
    def advance(self, step: int, images_per_second: float, seconds_left: float) -> None:
        """A step is done."""
        ...

    def say(self, line: str) -> None:
        """One line that stays: losses, an evaluation, a checkpoint."""
        ...


class Bar:
    """A rich bar, with lines above it."""

    def __init__(self, steps: int, done: int, name: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        self.bar = RichProgress(*columns)
        self.task = self.bar.add_task(name, total=steps, completed=done, pace="")
        self.bar.start()

    def advance(self, step: int, images_per_second: float, seconds_left: float) -> None:
        self.bar.update(self.task, completed=step, pace=pace(images_per_second, seconds_left))

    def say(self, line: str) -> None:
        self.bar.console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        self.bar.stop()


class Lines:
    """Plain lines on standard output, each with the step it belongs to."""

    def __init__(self, steps: int, done: int) -> None:
        self.steps, self.step, self.pace = steps, done, ""

    def advance(self, step: int, images_per_second: float, seconds_left: float) -> None:
        self.step, self.pace = step, pace(images_per_second, seconds_left)

    def say(self, line: str) -> None:
        print("  ".join(part for part in (f"[{self.step}/{self.steps}]", line, self.pace) if part), flush=True)


class Silent:
    """Nothing: the ranks other than 0."""

    def advance(self, step: int, images_per_second: float, seconds_left: float) -> None:
        pass

    def say(self, line: str) -> None:
        pass


@contextmanager
def progress(steps: int, done: int, rank: int, name: str) -> Iterator[Progress]:
    """A bar where standard output is a terminal, lines where it is not, nothing on ranks other than 0."""
    if rank != 0:
        yield Silent()
    elif sys.stdout.isatty():
        bar = Bar(steps, done, name)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield Lines(steps, done)


def pace(images_per_second: float, seconds_left: float) -> str:
    """ "12.3 images/s, 0:04:10 left"."""
    return f"{images_per_second:.1f} images/s, {timedelta(seconds=round(seconds_left))} left"
