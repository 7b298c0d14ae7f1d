"""The history of a run's data: who drew how many batches of what size, through all changes of the workers' number.

With the seed and the manifest of the shards it says which rows were trained on, see data/shares.py. It is all that a
checkpoint keeps of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sam3dist.errors import CheckpointError


@dataclass(frozen=True)
class Segment:
    """Batches that each of `world_size` workers drew, one after the other, and how rows came to the workers."""

    content: str
    """Hash of the shards that the rows are from."""
    cut_for: int
    """Workers that the row groups are cut for: as many as the run has at most."""
    per_block: int
    """References that go to one worker before the next worker has its turn."""
    world_size: int
    images_per_batch: int
    batches: int = 0
    """Drawn by each worker."""


def going_on(history: Sequence[Segment], now: Segment) -> tuple[Segment, ...]:
    """The history with `now`, which has no batches yet, at its end; the last segment goes on where it was alike.

    CheckpointError where the shards are not those of the history: then nobody can tell which rows are left.
    """
    past = [segment for segment in history if segment.batches]
    if any(segment.content != now.content for segment in past):
        raise CheckpointError(
            "data.train: it holds other rows than those that this run has been trained on so far; "
            "choose another run.dir, or put the rows back."
        )
    if past and replace(past[-1], batches=0) == now:
        return tuple(past)
    return (*past, now)


def after_batches(segments: tuple[Segment, ...], batches: int) -> tuple[Segment, ...]:
    """The history when each worker has drawn so many more; none stays none."""
    if not segments:
        return ()
    return (*segments[:-1], replace(segments[-1], batches=segments[-1].batches + batches))
