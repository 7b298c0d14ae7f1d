"""SIGTERM, which clusters send before they take a machine away, as a question the loop can ask."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has arrived; the signal does nothing else inside.

    Python lets only the main thread handle signals. In another one, as in a Ray worker, the answer stays False and
    whoever runs that thread passes its own `told_to_stop` to the loop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    arrived = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.set())
    try:
        yield arrived.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
