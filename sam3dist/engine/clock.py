"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TIMES = ("goodput", "waiting_share", "step_seconds", "useful_seconds", "wall_seconds", "began")
"""What a report says of them, see `Report`."""


@dataclass(frozen=True)
class TimeSpent:
    """What a checkpoint keeps of the time, so that a resumed run goes on from there."""

    began: float
    """When the run first began: Unix time."""
    until: float
    """When this was noted: Unix time."""
    useful_seconds: float
    """In the steps that made this checkpoint. What a lost attempt spent on later ones is not in it."""
    waiting_seconds: float
    """For the data of these steps."""
    steps: int
    """How many these are."""
    over: bool = False
    """The run has made all its steps; time that passes from here on is none of its own."""


class Clock:
    """Seconds spent in training steps, in waiting for their data, and in all, since the run first began."""

    def __init__(self, saved: TimeSpent | None = None, began: float | None = None) -> None:
        """saved: of the checkpoint that is resumed. began: Unix time of a run without, by default now."""
        now = time.time()
        self.saved = saved or TimeSpent(now if began is None else began, now, 0.0, 0.0, 0)
        self.away = max(0.0, now - self.saved.until)
        self.before = self.saved.until - self.saved.began + (0.0 if self.saved.over else self.away)  # wall seconds
        self.started = time.perf_counter()
        self.stopped: float | None = None
        self.stepping = self.waiting = 0.0  # in this process
        self.steps = self.images = 0
        self.first: tuple[float, int] = (0.0, 0)
        self.lapped: tuple[float, float, int] = (0.0, 0.0, 0)

    @contextmanager
    def wait(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waiting += time.perf_counter() - start

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """One step on this many images, those of all ranks."""
        start = time.perf_counter()
        yield
        self.stepping += time.perf_counter() - start
        self.images += images
        self.steps += 1
        if self.steps == 1:
            self.first = (self.stepping + self.waiting, images)

    def stop(self) -> None:
        """All steps are made: from now on no more time passes."""
        self.stopped = self.wall_seconds

    def lap(self) -> dict[str, float]:
        """Mean seconds of a step, and of the wait for its data, since the last call or the start."""
        stepping, waiting, steps = self.lapped
        made = max(1, self.steps - steps)
        self.lapped = self.stepping, self.waiting, self.steps
        return {
            "step_seconds": (self.stepping - stepping) / made,
            "data_wait_seconds": (self.waiting - waiting) / made,
        }

    def spent(self) -> TimeSpent:
        """What a checkpoint of this moment keeps."""
        until, steps = self.began + self.wall_seconds, self.saved.steps + self.steps
        over = self.stopped is not None
        return TimeSpent(self.began, until, self.useful_seconds, self.waiting_seconds, steps, over)

    def times(self) -> dict[str, Any]:
        """TIMES, all numbers, as they are now."""
        wall = max(self.wall_seconds, 1e-9)
        return {
            "goodput": self.useful_seconds / wall,
            "waiting_share": self.waiting_seconds / wall,
            "step_seconds": self.useful_seconds / max(self.saved.steps + self.steps, 1),
            "useful_seconds": self.useful_seconds,
            "wall_seconds": wall,
            "began": self.began,
        }

    @property
    def images_per_second(self) -> float:
        """Images over the time for steps and their data in this process. The first step, which also allocates and
        starts the readers, is left out once there is another."""
        seconds, images = self.stepping + self.waiting, self.images
        if self.steps > 1:
            seconds, images = seconds - self.first[0], images - self.first[1]
        return images / seconds if seconds > 0 else 0.0

    def seconds_for(self, steps: int) -> float:
        """What so many further steps will take, going by those so far, evaluations and checkpoints not counted."""
        return steps * (self.stepping + self.waiting) / max(self.steps, 1)

    @property
    def useful_seconds(self) -> float:
        return self.saved.useful_seconds + self.stepping

    @property
    def waiting_seconds(self) -> float:
        return self.saved.waiting_seconds + self.waiting

    @property
    def wall_seconds(self) -> float:
        """Since the run first began, restarts and the time between them included."""
        if self.stopped is not None:
            return self.stopped
        return self.before + time.perf_counter() - self.started

    @property
    def began(self) -> float:
        """When the run first began; of one that went on after it was over, later by the time it was over."""
        return self.saved.began + (self.away if self.saved.over else 0.0)
