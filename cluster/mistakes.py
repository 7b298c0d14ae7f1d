"""Errors a person can mend, found inside what Ray wraps around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.train import ControllerError, TrainingFailedError, UserCallback

# Ray hands these to whoever catches a ControllerError, but exports them nowhere.
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from sam3dist.errors import MemoryFullError, ResourceError, Sam3DistError, first_line

WRAPPERS = ("controller_failure", "health_check_failure", "cause", "__cause__", "__context__")
"""Attributes by which Ray's and Python's errors hold the one before."""


class GiveUpOnMistakes(UserCallback):
    """Ends a run of Ray Train at once when a worker raises what only a person can mend.

    Trying again, as for a lost machine, would find the same. An error raised here ends the run as Ray's
    ControllerError, which holds it.
    """

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, Sam3DistError):
                raise error


@contextmanager
def explained() -> Iterator[None]:
    """Inside, what Ray Train raises is the mistake that it holds, or a ResourceError where workers never started or a
    node's memory was full."""
    try:
        yield
    except TrainingFailedError as error:
        mistake = persons_mistake(error) or _not_started(error) or _memory_full(error)
        if mistake is None:
            raise
        raise mistake from error


def _not_started(error: TrainingFailedError) -> ResourceError | None:
    reason = error.controller_failure if isinstance(error, ControllerError) else None
    if not isinstance(reason, WorkerGroupStartupFailedError | WorkerGroupStartupTimeoutError):
        return None
    first = " ".join(str(reason).split()).partition(". ")[0].rstrip(".")
    return ResourceError(
        f"the workers did not start, however often it was tried ({first}); other jobs may hold what they need: try "
        "again later, ask for less (strategy.num_workers), or wait longer (RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S)."
    )


def _memory_full(error: BaseException) -> MemoryFullError | None:
    """Where Ray has ended a worker since the main memory of its node was full."""
    for found in _held(error):
        if isinstance(found, OutOfMemoryError):
            return MemoryFullError(
                f"the memory of a node was full, and Ray ended a worker ({first_line(found)}); lower "
                "data.images_per_batch and raise optim.accumulate, lower data.prefetch_batches, or give a node fewer "
                "workers (strategy.cpus_per_worker)."
            )
    return None


def persons_mistake(error: BaseException | None) -> Sam3DistError | None:
    """The error for a person inside this one, or None."""
    for found in _held(error):
        # Ray makes a class that is both of a task's error and its cause; its text is the whole traceback.
        if isinstance(found, Sam3DistError) and not isinstance(found, RayTaskError):
            return found
    return None


def last_line(error: BaseException) -> str:
    """Why a run failed: the mistake for a person, else the end of what Ray says."""
    return str(persons_mistake(error) or error).strip().splitlines()[-1]


def _held(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it holds, each once."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        yield found
        seen.add(id(found))
        workers: Mapping[int, object] = getattr(found, "worker_failures", {})
        held = [*workers.values(), *(getattr(found, name, None) for name in WRAPPERS)]
        waiting.extend(each for each in held if isinstance(each, BaseException))
