"""SIGTERM, which `ray job stop` and Kubernetes send, as an orderly end with exit code 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

STOP = "stop"
"""A file of this name in the run directory asks the workers of a run to save a checkpoint and end."""
GRACE_S = 25
"""Kubernetes kills after 30 seconds, and `ray job stop` a job that `sam3dist submit` gave as many. Of others Ray kills
the driver after 3, unless RAY_JOB_STOP_WAIT_TIME_S says more in the job's environment or where the cluster is started:
then the run resumes at the checkpoint before."""


def leave_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit(143), so that a cluster started here is shut down."""
    signal.signal(signal.SIGTERM, _leave)


@contextmanager
def checkpoint_on_sigterm(run_dir: Path) -> Iterator[None]:
    """Inside, SIGTERM asks the run's workers for a last checkpoint; after 25 s, or if it comes again, it leaves.

    Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: object) -> None:
        (run_dir / STOP).touch()
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGALRM, _leave)
        signal.alarm(GRACE_S)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, before)


def _leave(signum: int, frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)
