"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds spent in training steps, in waiting for their data, and in all, since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.stepping = 0.0
        self.waiting = 0.0
        self.steps = 0
        self.images = 0
        self.first: tuple[float, int] = (0.0, 0)

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

    @property
    def images_per_second(self) -> float:
        """Images over the time for steps and their data. The first step, which also allocates and starts the readers,
        is left out once there is another."""
        seconds, images = self.stepping + self.waiting, self.images
        if self.steps > 1:
            seconds, images = seconds - self.first[0], images - self.first[1]
        return images / seconds if seconds > 0 else 0.0

    def seconds_for(self, steps: int) -> float:
        """What so many further steps will take, going by those so far, evaluations and checkpoints not counted."""
        return steps * (self.stepping + self.waiting) / max(self.steps, 1)

    @property
    def goodput(self) -> float:
        """Share of all time so far that went into training steps."""
        return self.stepping / (time.perf_counter() - self.began)
