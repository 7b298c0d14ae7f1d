"""Work in threads that keeps its order, and a generator that runs ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def ordered_map(function: Callable[[In], Out], items: Iterable[In], threads: int, ahead: int) -> Generator[Out]:
    """function(item) for each item in order, with at most `ahead` of them started and not yet taken."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sam3dist-data")
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_ahead(items: Iterable[Out], depth: int) -> Generator[Out]:
    """The same items, made by a background thread that stays at most `depth` ahead.

    An error of the source is raised here, after the items before it. Closing this generator early stops the
    thread and closes the source.
    """
    ready: queue.Queue[tuple[Out | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def offer(entry: tuple[Out | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)  # wakes up to see `stop`: nobody may ever take from the queue again
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        source = iter(items)
        ended: BaseException = StopIteration()
        try:
            for item in source:
                if not offer((item, None)):
                    return
        except BaseException as error:
            ended = error
        finally:
            if hasattr(source, "close"):
                source.close()
            offer((None, ended))

    thread = threading.Thread(target=work, name="sam3dist-run-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, ended = ready.get()
            if isinstance(ended, StopIteration):
                return
            if ended is not None:
                raise ended
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
