"""Errors a person can mend, found inside what Ray wraps around them."""

from __future__ import annotations

from collections.abc import Mapping

from ray.exceptions import RayTaskError
from ray.train import UserCallback

from sam3dist.errors import Sam3DistError

WRAPPERS = ("controller_failure", "cause", "__cause__", "__context__")
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


def persons_mistake(error: BaseException | None) -> Sam3DistError | None:
    """The error for a person inside this one, or None."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        found = waiting.pop()
        # Ray makes a class that is both of a task's error and its cause; its text is the whole traceback.
        if isinstance(found, Sam3DistError) and not isinstance(found, RayTaskError):
            return found
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        workers: Mapping[int, object] = getattr(found, "worker_failures", {})
        held = [*workers.values(), *(getattr(found, name, None) for name in WRAPPERS)]
        waiting.extend(each for each in held if isinstance(each, BaseException))
    return None
