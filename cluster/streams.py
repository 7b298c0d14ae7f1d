"""Shards -> references in Ray Data -> each worker's endless batches.

Ray Data carries references to rows, never pixels: a dozen bytes instead of megabytes, which the threads of the
worker that trains then read and decode. Measured, this comes within 14 to 31 % of decoding alone, several times as
fast as decoding in Ray Data's tasks. It also needs no task, hence no CPU beside those of the workers.

One dataset spans the whole run instead of one per epoch. Ray Data starts an epoch only when all workers have asked
for it, so two workers whose epochs end a batch apart would wait for each other for ever, one in Ray Data and one in
an all-reduce. In one long stream epochs follow each other without such a meeting.

The same dataset serves any number of workers up to the one it is made for, so that Ray Train may start a group again
with those that are left. What the group before it had begun and not finished is shared out without Ray Data
(sam3dist/data/shares.py).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import ray.data
from ray.data import ExecutionOptions
from ray.train import DataConfig as SplitConfig

from sam3dist.data.batches import remaining
from sam3dist.data.segments import Segment
from sam3dist.data.shards import RowGroup, Shards, cut
from sam3dist.data.shares import Shares, piece_order
from sam3dist.errors import DataError
from sam3dist.types import PromptBatch

if TYPE_CHECKING:
    from sam3dist.config.distill import DataConfig, DistillConfig
    from sam3dist.teaching.store import AnswerStore

TRAIN = "train"
MAX_BLOCKS = 2048
"""A block is one object of Ray; beyond this many, blocks hold several references."""
SPARE = 1.25
"""References made over those needed: a worker's share of an epoch can be a little smaller than another's."""


@dataclass(frozen=True)
class Deal:
    """How the references of a run go round: `blocks` of `per_block` of them, to one worker after the other."""

    cut_for: int
    """Workers that the row groups are cut for, the most that the run can have."""
    per_block: int
    blocks: int

    def to_each(self, world_size: int) -> int:
        """References that each of so many workers gets as expected: those of the rounds in which all have a block.

        Of the blocks that are left over, Ray Data cuts up some and drops the rest.
        """
        return self.blocks // world_size * self.per_block

    def segment(self, shards: Shards, world_size: int, images_per_batch: int) -> Segment:
        """A segment of the run's history that nobody has drawn a batch of."""
        return Segment(shards.content_hash[:16], self.cut_for, self.per_block, world_size, images_per_batch)


def make_deal(shards: Shards, config: DistillConfig, history: Sequence[Segment] = ()) -> Deal:
    """The deal for all the steps of a run, with those of its history; DataError when there are fewer rows than workers.

    The same configuration gives the same deal again, however far the run is, unless its workers or batches changed.
    """
    workers, images = config.strategy.num_workers, config.data.images_per_batch
    pieces = len(cut(shards.row_groups, workers))
    batches = config.optim.steps * config.optim.accumulate - sum(segment.batches for segment in history)
    seen = sum(segment.batches * segment.images_per_batch * segment.world_size for segment in history)
    epochs = (seen + max(batches, 0) * images * workers) / shards.rows
    wanted = int(pieces * (epochs * SPARE + 2))
    rounds = -(-min(wanted, MAX_BLOCKS) // workers)
    return Deal(workers, -(-wanted // (rounds * workers)), rounds * workers)


def reference_dataset(shards: Shards, seed: int, deal: Deal) -> ray.data.Dataset:
    """A dataset with a row {epoch, path, index, rows, part, parts} for each reference of a deal.

    In every epoch each row of the shards is under exactly one reference; the order is drawn anew from (seed, epoch).
    """
    # Workers take blocks in turn. With blocks of one size, which worker gets which reference is known, whatever the
    # number of workers: that is what makes a run resumable. Unlike `from_arrow` this needs no task, hence no CPU.
    stream = islice(references(cut(shards.row_groups, deal.cut_for), seed), deal.blocks * deal.per_block)
    dataset = ray.data.from_items(list(stream), override_num_blocks=deal.blocks)
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset


def references(pieces: Sequence[RowGroup], seed: int) -> Iterator[dict[str, Any]]:
    """Every piece once per epoch, in an order drawn from (seed, epoch), for ever."""
    names = ("path", "index", "rows", "part", "parts")
    rows = [{name: getattr(piece, name) for name in names} for piece in pieces]
    for epoch in count():
        for place in piece_order(seed, epoch, len(pieces)):
            yield {"epoch": epoch, **rows[place]}


def split_config() -> SplitConfig:
    """How Ray Train hands the references out: one worker after the other, in order."""
    return SplitConfig(
        datasets_to_split=[TRAIN],
        execution_options=ExecutionOptions(preserve_order=True),
        enable_shard_locality=False,  # would reorder, and references have no place they are nearer to
    )


def training_batches(
    rows: Iterable[dict[str, Any]],
    deal: Deal,
    shards: Shards,
    data: DataConfig,
    image_size: int,
    *,
    seed: int,
    segments: Sequence[Segment],
    rank: int,
    answers: AnswerStore | None = None,
) -> Generator[PromptBatch]:
    """The batches of one worker, from its share of the references (`get_dataset_shard("train").iter_rows()`).

    segments: the history of the run, with this group of workers at its end. What they count is skipped without being
    read: in every epoch each row is trained on once, however often the number of workers or the size of batches has
    changed, and with none of that the run goes on as if nothing had happened. DataError when the references run out,
    which means that too many rows are unusable.
    """
    known = islice(rows, deal.to_each(segments[-1].world_size))
    dealt = expected(known, Shares(shards.row_groups, seed).dealt(segments[-1], rank))
    made = remaining(
        dealt, shards.row_groups, data, image_size, seed=seed, segments=segments, rank=rank, answers=answers
    )
    return _never_ending(made)


def expected(rows: Iterable[dict[str, Any]], dealt: Iterable[tuple[int, RowGroup]]) -> Iterator[tuple[int, RowGroup]]:
    """Epoch and reference of each row; RuntimeError where it is not what goes to this worker by our reckoning.

    The history of a run says which rows were trained on only as long as Ray Data keeps to that.
    """
    for row, (epoch, reference) in zip(rows, dealt, strict=False):
        found = RowGroup(**{key: value for key, value in row.items() if key != "epoch"})
        if (row["epoch"], found) != (epoch, reference):
            raise RuntimeError(
                f"Ray Data handed out {found} of epoch {row['epoch']} where {reference} of epoch {epoch} was due: "
                "it takes turns in another way than is expected, or the workers see other shards than the driver."
            )
        yield epoch, reference


def _never_ending(batches: Iterator[PromptBatch]) -> Generator[PromptBatch]:
    yield from batches
    raise DataError("data.train: the run needs more rows than its epochs gave; too many of them are unusable.")
