"""SIGTERM, which `ray job stop` and Kubernetes send, as an orderly end with exit code 143."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ray.experimental import internal_kv
from ray.train.v2._internal.execution.context import get_train_context as get_internal_train_context

POLL_S = 1.0
GRACE_S = 25
"""Kubernetes kills after 30 seconds, and `ray job stop` a job that `sam3dist submit` gave as many. Of others Ray kills
the driver after 3, unless RAY_JOB_STOP_WAIT_TIME_S says more in the job's environment or where the cluster is started:
then the run resumes at the checkpoint before."""


def ask_to_stop(run_dir: Path) -> None:
    """Ask the workers of a run to save a checkpoint and end, wherever they are."""
    internal_kv._internal_kv_put(_key(run_dir), b"1")


def take_back(run_dir: Path) -> None:
    """Forget that the workers of this run were asked to stop."""
    internal_kv._internal_kv_del(_key(run_dir))


def told_to_stop(run_dir: Path) -> Callable[[], bool]:
    """In a worker: whether its run was asked to stop. The cluster is asked once a second at most."""
    key, asked_at, told = _key(run_dir), 0.0, False

    def ask() -> bool:
        nonlocal asked_at, told
        if not told and time.monotonic() - asked_at > POLL_S:
            asked_at = time.monotonic()
            told = bool(internal_kv._internal_kv_exists(key))
        return told

    return ask


def preempted() -> bool:
    """In a worker: whether one of the run's machines is about to be taken away, as `ray drain-node` announces."""
    # Ray's own get_preemption_info is a meeting of all workers; the loop has one already in which it tells the others.
    return get_internal_train_context().preemption_context.preemption_info is not None


def _key(run_dir: Path) -> bytes:
    return f"sam3dist-stop:{run_dir}".encode()


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
        # Not here: the signal may have interrupted Ray in the middle of a message of its own.
        threading.Thread(target=ask_to_stop, args=(run_dir,), daemon=True).start()
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
