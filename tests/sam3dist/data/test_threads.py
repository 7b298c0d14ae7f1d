import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from sam3dist.data.threads import ordered_map, run_ahead


def our_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("sam3dist-")}


def test_results_keep_their_order_whatever_takes_longest():
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 4 == 0 else 0)
        return item * item

    assert list(ordered_map(slow_first, range(20), threads=4, ahead=8)) == [i * i for i in range(20)]


def test_no_more_than_allowed_is_started_ahead():
    started = 0

    def source() -> Iterator[int]:
        nonlocal started
        for item in range(100):
            started += 1
            yield item

    mapped = ordered_map(abs, source(), threads=2, ahead=5)
    next(mapped)
    assert started == 5
    mapped.close()
    assert not our_threads()


def test_an_error_in_a_thread_is_raised_in_its_place():
    mapped = ordered_map(lambda item: 1 // item, [1, 1, 0, 1], threads=2, ahead=2)
    assert [next(mapped), next(mapped)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(mapped)


def test_running_ahead_changes_nothing_but_time():
    assert list(run_ahead(range(50), 3)) == list(range(50))
    assert list(run_ahead([], 1)) == []


def test_closing_early_stops_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    for taken in (0, 1, 5):
        closed.clear()
        ahead = run_ahead(source(), 2)
        for _ in range(taken):
            next(ahead)
        start = time.monotonic()
        ahead.close()
        assert time.monotonic() - start < 2
        assert closed.is_set() == (taken > 0)  # a generator that never started owns no thread yet
        assert not our_threads()


def test_an_error_of_the_source_arrives_after_the_items_before_it():
    def source() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    ahead = run_ahead(source(), 2)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk"):
        next(ahead)
    assert not our_threads()
