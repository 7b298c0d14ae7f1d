"""Row groups -> batches, a step or two ahead of the network.

Where none of a batch can be used, training sees the next one in its place, too: all workers count the same batches,
whatever they set aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from typing import TYPE_CHECKING

from sam3dist.data.buffers import ImageBuffers
from sam3dist.data.decode import collate
from sam3dist.data.epoch import Epoch
from sam3dist.data.rejects import Rejects
from sam3dist.data.segments import Segment, going_on
from sam3dist.data.shards import RowGroup, Shards, first_rows, split_row_groups
from sam3dist.data.shares import Shares, piece_order
from sam3dist.data.threads import run_ahead
from sam3dist.errors import DataError
from sam3dist.types import PromptBatch

if TYPE_CHECKING:
    from sam3dist.config.distill import DataConfig
    from sam3dist.teaching.store import AnswerStore

MAX_PROMPTS = 32
"""Phrases of an evaluation batch, at most, where `prompts_per_batch` is not given."""
CALIBRATION_IMAGES = 2
"""Images of a calibration batch, at most."""


def batches(
    row_groups: Iterable[RowGroup],
    data: DataConfig,
    image_size: int,
    *,
    seed: int,
    epoch: int,
    training: bool,
    images_per_batch: int | None = None,
    prompts_per_batch: int = MAX_PROMPTS,
    rejects: Rejects | None = None,
) -> Generator[PromptBatch]:
    """The batches of one epoch, made by background threads; closing the iterator early stops them.

    Training: row groups are shuffled where they come as a sequence (a stream is taken as it comes), rows among a
    few neighbouring row groups, and `data.prompts_per_image` phrases are drawn per image; the last batch may be
    smaller. Evaluation: all rows in order with all their phrases, at most `prompts_per_batch`; an image with more
    comes again in the next batch.
    `images_per_batch` stands in for the one of `data`. Rows that cannot be used are counted in `rejects`; more
    than `data.max_rejected_share` of them raises DataError.
    """
    if training and isinstance(row_groups, Sequence):
        row_groups = _shuffled(row_groups, seed, epoch)
    size = images_per_batch or data.images_per_batch
    places = Epoch(data, image_size, seed, epoch, training, size, prompts_per_batch).places(row_groups, rejects)
    return run_ahead((collate(samples) for samples in places if samples), data.prefetch_batches)


def endless(
    row_groups: Sequence[RowGroup],
    data: DataConfig,
    image_size: int,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    history: Sequence[Segment] = (),
) -> Generator[PromptBatch]:
    """Training batches of one rank, epoch after epoch, shuffled anew in each, after those of the `history` of a run.

    What was seen is skipped without being read, whatever the number of ranks was. Raises DataError where there are
    fewer rows than ranks.
    """
    now = Segment("", world_size, 1, world_size, data.images_per_batch)
    segments = going_on(history, now)
    dealt = Shares(row_groups, seed).dealt(now, rank)
    return remaining(dealt, row_groups, data, image_size, seed=seed, segments=segments, rank=rank)


def remaining(
    dealt: Iterable[tuple[int, RowGroup]],
    row_groups: Sequence[RowGroup],
    data: DataConfig,
    image_size: int,
    *,
    seed: int,
    segments: Sequence[Segment],
    rank: int,
    answers: AnswerStore | None = None,
) -> Generator[PromptBatch]:
    """Training batches of one rank in the last of the `segments`, after those that the segments count already.

    dealt: epoch and reference of all that goes round to this rank. What the segments before the last have left of
    epochs that somebody had begun comes first, so that each row is seen once in every epoch.
    """
    now = segments[-1]
    shares = Shares(row_groups, seed)
    unseen = shares.unseen(segments[:-1])
    left = shares.of_rank(unseen, rank, now.world_size)
    fresh = (
        (epoch, [reference for _, reference in pairs])
        for epoch, pairs in groupby(dealt, key=lambda pair: pair[0])
        if epoch >= unseen.first
    )
    fair = sum(group.rows for group in row_groups) // now.world_size
    return follow(
        chain(left, fresh), data, image_size, seed=seed, skip_batches=now.batches, answers=answers, fair_rows=fair
    )


def follow(
    epochs: Iterable[tuple[int, Sequence[RowGroup]]],
    data: DataConfig,
    image_size: int,
    *,
    seed: int,
    skip_batches: int = 0,
    answers: AnswerStore | None = None,
    fair_rows: int = 0,
) -> Generator[PromptBatch]:
    """Training batches of one rank from pairs of an epoch and its row groups in order, after the first `skip_batches`.

    The skipped ones are not read. answers: a teacher's to the same shards; the batches then have them. Each batch says
    how many of its rows were `rejected`. DataError where too many of a share cannot be used, or none of it, or, of
    smaller shares than `fair_rows`, none of so many rows together.
    """

    def made() -> Iterator[PromptBatch]:
        skip = skip_batches
        barren = 0  # rows of whole shares since the last usable one
        buffers = ImageBuffers(data.images_per_batch, 3, image_size, image_size)
        waiting: list[Counter[str]] = []  # what is missing from the batches whose places the next one takes
        for epoch, groups in epochs:
            rows = sum(len(group.places) for group in groups)
            length = -(-rows // data.images_per_batch)
            if skip >= length:
                skip -= length
                continue
            samples_of = Epoch(data, image_size, seed, epoch, True, data.images_per_batch, MAX_PROMPTS, answers)
            barren += rows if skip == 0 else 0
            rejects, known = Rejects(), Counter[str]()
            for samples in samples_of.places(groups, rejects, skip, buffers, fair_rows):
                waiting.append(rejects.by_reason - known)
                known = rejects.by_reason.copy()
                if samples:
                    batch = collate(samples)
                    yield from (replace(batch, rejected=missing) for missing in waiting)
                    barren, waiting = 0, []
            if barren > 0 and barren >= fair_rows:
                raise DataError(f"data.train: not one row of a worker's share in epoch {epoch} can be used.")
            skip = 0

    return run_ahead(made(), data.prefetch_batches)


def evaluation_batches(
    shards: Shards,
    data: DataConfig,
    image_size: int,
    rank: int = 0,
    world_size: int = 1,
    max_images: int | None = None,
    images_per_batch: int | None = None,
    prompts_per_batch: int = MAX_PROMPTS,
    rejects: Rejects | None = None,
) -> Generator[PromptBatch]:
    """One rank's share of the first `max_images` images with all their phrases; together, ranks see each once.

    Rows that cannot be used are counted in `rejects`.
    """
    mine = split_row_groups(first_rows(shards.row_groups, max_images), rank, world_size)
    return batches(
        mine,
        data,
        image_size,
        seed=0,
        epoch=0,
        training=False,
        images_per_batch=images_per_batch,
        prompts_per_batch=prompts_per_batch,
        rejects=rejects,
    )


def calibration_batches(
    shards: Shards, data: DataConfig, image_size: int, images: int, seed: int
) -> Generator[PromptBatch]:
    """The first `images` images in small batches, as training sees them, for what looks at a teacher at work.

    Small, because a teacher that must remember what it computed needs ten times the memory of one that answers.
    """
    few = min(data.images_per_batch, CALIBRATION_IMAGES)
    rows = first_rows(shards.row_groups, images)
    return batches(rows, data, image_size, seed=seed, epoch=0, training=True, images_per_batch=few)


def _shuffled(row_groups: Sequence[RowGroup], seed: int, epoch: int) -> list[RowGroup]:
    return [row_groups[i] for i in piece_order(seed, epoch, len(row_groups))]
