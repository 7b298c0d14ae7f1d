"""Shards -> references in Ray Data -> each worker's endless batches.

Ray Data carries references to rows, never pixels: a dozen bytes instead of megabytes, which the threads of the
worker that trains then read and decode. Measured, this comes within 14 to 31 % of decoding alone, several times as
fast as decoding in Ray Data's tasks. It also needs no task, hence no CPU beside those of the workers.

One dataset spans the whole run instead of one per epoch. Ray Data starts an epoch only when all workers have asked
for it, so two workers whose epochs end a batch apart would wait for each other for ever, one in Ray Data and one in
an all-reduce. In one long stream epochs follow each other without such a meeting.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict
from itertools import count, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
from ray.data import ExecutionOptions
from ray.train import DataConfig as SplitConfig

from sam3dist.data.batches import follow
from sam3dist.data.shards import RowGroup, Shards, split_row_groups
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


def reference_dataset(shards: Shards, config: DistillConfig) -> ray.data.Dataset:
    """A dataset with a row {epoch, path, index, rows, part, parts} for each reference that the run can need.

    In every epoch each row of the shards is under exactly one reference; the order is drawn anew from
    (run.seed, epoch). DataError when there are fewer rows than workers.
    """
    world_size = config.strategy.num_workers
    if shards.rows < world_size:
        raise DataError(
            f"data.train={shards.folder}: {shards.rows} rows cannot feed {world_size} workers; "
            "use more images or a smaller strategy.num_workers."
        )
    pieces = [piece for rank in range(world_size) for piece in split_row_groups(shards.row_groups, rank, world_size)]
    batches = config.optim.steps * config.optim.accumulate
    epochs = batches * config.data.images_per_batch * world_size / shards.rows
    wanted = int(len(pieces) * (epochs * SPARE + 2))
    # Workers take blocks in turn. With blocks of one size and as many for each worker nothing is left over, so
    # nothing is dropped, and which worker gets which reference is known: that is what makes a run resumable.
    rounds = -(-min(wanted, MAX_BLOCKS) // world_size)
    per_block = -(-wanted // (rounds * world_size))
    stream = islice(references(pieces, config.run.seed), rounds * world_size * per_block)
    dataset = ray.data.from_items(list(stream), override_num_blocks=rounds * world_size)
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset


def references(pieces: list[RowGroup], seed: int) -> Iterator[dict[str, Any]]:
    """Every piece once per epoch, in an order drawn from (seed, epoch), for ever."""
    for epoch in count():
        for place in np.random.default_rng((seed, epoch)).permutation(len(pieces)):
            yield {"epoch": epoch, **asdict(pieces[place])}


def split_config() -> SplitConfig:
    """How Ray Train hands the references out: one worker after the other, in order."""
    return SplitConfig(
        datasets_to_split=[TRAIN],
        execution_options=ExecutionOptions(preserve_order=True),
        enable_shard_locality=False,  # would reorder, and references have no place they are nearer to
    )


def training_batches(
    rows: Iterable[dict[str, Any]],
    data: DataConfig,
    image_size: int,
    *,
    seed: int,
    skip_batches: int = 0,
    answers: AnswerStore | None = None,
) -> Generator[PromptBatch]:
    """The batches of one worker, from its share of the references (`get_dataset_shard("train").iter_rows()`).

    A resumed run skips the batches it has trained on without reading them; with the same number of workers it
    goes on in the middle of an epoch as if nothing had happened. DataError when the references run out, which
    means that too many rows are unusable.
    """
    return _never_ending(follow(_epochs(rows), data, image_size, seed=seed, skip_batches=skip_batches, answers=answers))


def _epochs(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, list[RowGroup]]]:
    for epoch, group in groupby(rows, key=lambda row: int(row["epoch"])):
        yield epoch, [RowGroup(**{key: value for key, value in row.items() if key != "epoch"}) for row in group]


def _never_ending(batches: Iterator[PromptBatch]) -> Generator[PromptBatch]:
    yield from batches
    raise DataError("data.train: the run needs more rows than its epochs gave; too many of them are unusable.")
