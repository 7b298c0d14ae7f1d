"""Row groups -> batches: read, decode in threads, ask some phrases, collate; a step or two ahead of the network.

Which rows make a batch follows from (seed, epoch) and the row groups alone. A row that cannot be used leaves a
gap in its batch and moves no other row, so that a run can resume in the middle of an epoch. Where none of a batch can
be used, training sees the next one in its place, too: all workers count the same batches, whatever they set aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sam3dist.data.decode import PLAIN, Asked, Sample, View, collate, decode_questions, with_pixels
from sam3dist.data.prompts import draw_prompts
from sam3dist.data.rejects import Reject, Rejects
from sam3dist.data.rows import Prompt, Row
from sam3dist.data.shards import RowGroup, Shards, first_rows, read_rows, split_row_groups
from sam3dist.data.threads import ordered_map, run_ahead
from sam3dist.errors import DataError
from sam3dist.types import PromptBatch

if TYPE_CHECKING:
    from sam3dist.config.distill import DataConfig
    from sam3dist.teaching.store import AnswerStore

MAX_PROMPTS = 32
"""Phrases of an evaluation batch, at most, where `prompts_per_batch` is not given."""
MIX_GROUPS = 4
"""Row groups whose rows are mixed in training."""
CALIBRATION_IMAGES = 2
"""Images of a calibration batch, at most."""
TOGETHER = 4
"""Rows of one piece of a thread's work. All their phrases come first, then all their images: between images, what
little each phrase needs takes two to three times as long as among its like."""


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
    reader = _Reader(
        data, image_size, seed, epoch, training, images_per_batch or data.images_per_batch, prompts_per_batch
    )
    return run_ahead(reader.batches(row_groups, rejects), data.prefetch_batches)


def endless(
    row_groups: Sequence[RowGroup],
    data: DataConfig,
    image_size: int,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_epoch: int = 0,
    start_batch: int = 0,
) -> Generator[PromptBatch]:
    """Training batches of one rank, epoch after epoch, shuffled anew in each; resumes at (start_epoch, start_batch).

    Batches before the start are skipped without being read. Raises DataError where an epoch has not one batch
    for this rank: the others would wait for it for ever.
    """

    def shares() -> Iterator[tuple[int, list[RowGroup]]]:
        for epoch in count(start_epoch):
            mine = split_row_groups(_shuffled(row_groups, seed, epoch), rank, world_size)
            if not mine:
                total = sum(len(group.places) for group in row_groups)
                raise DataError(
                    f"data.train: {total} rows give worker {rank} of {world_size} nothing to train on; "
                    "use more images or a smaller strategy.num_workers."
                )
            yield epoch, mine

    return follow(shares(), data, image_size, seed=seed, skip_batches=start_batch)


def follow(
    epochs: Iterable[tuple[int, Sequence[RowGroup]]],
    data: DataConfig,
    image_size: int,
    *,
    seed: int,
    skip_batches: int = 0,
    answers: AnswerStore | None = None,
) -> Generator[PromptBatch]:
    """Training batches of one rank from pairs of an epoch and its row groups in order, after the first `skip_batches`.

    The skipped ones are not read. answers: a teacher's to the same shards; the batches then have them. Each batch says
    how many of its rows were `rejected`. DataError where a share has rows but not one that can be used.
    """

    def made() -> Iterator[PromptBatch]:
        skip = skip_batches
        waiting: list[Counter[str]] = []  # what is missing from the batches whose places the next one takes
        for epoch, groups in epochs:
            length = _length(groups, data)
            if skip >= length:
                skip -= length
                continue
            reader = _Reader(data, image_size, seed, epoch, True, data.images_per_batch, answers=answers)
            empty = skip == 0
            rejects, known = Rejects(), Counter[str]()
            for samples in reader.places(groups, rejects, skip):
                waiting.append(rejects.by_reason - known)
                known = rejects.by_reason.copy()
                if samples:
                    batch = collate(samples)
                    yield from (replace(batch, rejected=missing) for missing in waiting)
                    empty, waiting = False, []
            if empty:
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


def drawn_view(size: tuple[int, int], data: DataConfig, rng: np.random.Generator) -> View:
    """How one step looks at an image of `size` (height, width)."""
    flip = data.horizontal_flip and rng.random() < 0.5
    window, colours = None, PLAIN.colours
    if data.crop_share < 1:
        share = rng.uniform(data.crop_share, 1) ** 0.5  # of each side, so that the image keeps its shape
        height, width = (max(1, round(share * length)) for length in size)
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(size, (height, width), strict=True))
        window = (top, left, height, width)
    if data.colour_jitter > 0:
        brightness, contrast, saturation = 1 + data.colour_jitter * rng.uniform(-1, 1, 3)
        colours = (brightness, contrast, saturation)
    return View(window, flip, colours)


def _length(groups: Sequence[RowGroup], data: DataConfig) -> int:
    return -(-sum(len(group.places) for group in groups) // data.images_per_batch)


def _shuffled(row_groups: Sequence[RowGroup], seed: int, epoch: int) -> list[RowGroup]:
    order = np.random.default_rng((seed, epoch)).permutation(len(row_groups))
    return [row_groups[i] for i in order]


@dataclass(frozen=True)
class _SetAside:
    name: object
    reject: Reject


@dataclass(frozen=True)
class _Reader:
    """Makes the batches of one epoch from row groups that are in order already."""

    data: DataConfig
    side: int
    seed: int
    epoch: int
    training: bool
    images_per_batch: int
    prompts_per_batch: int = MAX_PROMPTS
    answers: AnswerStore | None = None

    def batches(self, row_groups: Iterable[RowGroup], rejects: Rejects | None) -> Iterator[PromptBatch]:
        yield from (collate(samples) for samples in self.places(row_groups, rejects) if samples)

    def places(self, row_groups: Iterable[RowGroup], rejects: Rejects | None, skip: int = 0) -> Iterator[list[Sample]]:
        """The usable samples of each batch after the first `skip`; in training there may be none."""
        rejects = Rejects() if rejects is None else rejects
        ahead = self.data.decode_threads + 1 + self.images_per_batch // TOGETHER
        rows = self._rows(row_groups, skip * self.images_per_batch)
        pieces = iter(lambda: list(islice(rows, TOGETHER)), [])
        with closing(ordered_map(self._samples, pieces, self.data.decode_threads, ahead)) as results:
            total = sum(len(group.places) for group in row_groups) if isinstance(row_groups, Sequence) else None
            samples = self._set_aside(chain.from_iterable(results), rejects, total)
            if self.training:
                yield from self._in_places(samples)
            else:
                usable = (sample for sample in samples if sample is not None)
                yield from grouped(usable, self.images_per_batch, self.prompts_per_batch)

    def _rows(self, row_groups: Iterable[RowGroup], skip: int) -> Iterator[Row | _SetAside]:
        """The rows in the order of this epoch, after the first `skip`."""
        # One ahead: reading is done in the time that decoding takes.
        with closing(ordered_map(self._mixed, self._orders(row_groups, skip), threads=1, ahead=2)) as mixes:
            yield from chain.from_iterable(mixes)

    def _orders(self, row_groups: Iterable[RowGroup], skip: int) -> Iterator[tuple[list[RowGroup], np.ndarray]]:
        """Row groups that are mixed, and the order of their rows without those that are skipped."""
        rng = np.random.default_rng((self.seed, self.epoch, 1))
        stream = iter(row_groups)
        while groups := list(islice(stream, MIX_GROUPS if self.training else 1)):
            size = sum(len(group.places) for group in groups)
            order = rng.permutation(size) if self.training else np.arange(size)
            if skip < size:
                yield groups, order[skip:]
            skip = max(skip - size, 0)

    def _mixed(self, mix: tuple[list[RowGroup], np.ndarray]) -> list[Row | _SetAside]:
        groups, order = mix
        rows = [row for group in groups for row in _read(group, self.answers)]
        return [rows[place] for place in order]

    def _samples(self, rows: Sequence[Row | _SetAside]) -> list[Sample | _SetAside | None]:
        """The decoded rows with the phrases of this step; None where there is nothing to ask."""
        return [self._seen(*drawn) if isinstance(drawn, tuple) else drawn for drawn in [*map(self._drawn, rows)]]

    def _drawn(self, row: Row | _SetAside) -> tuple[Row, tuple[Asked, ...], View] | _SetAside | None:
        """The row, its phrases of this step, and how it is looked at."""
        if isinstance(row, _SetAside):
            return row
        # Of its own for each image, so that threads and skipped batches change nothing.
        rng = np.random.default_rng((self.seed, self.epoch, row.image_id % 2**63))
        prompts: Sequence[Prompt] = row.prompts
        if self.training:
            prompts = draw_prompts(row.prompts, self.data.prompts_per_image, self.data.negative_share, rng)
        view = drawn_view((row.height, row.width), self.data, rng) if prompts and self.training else PLAIN
        try:
            asked = decode_questions(row, prompts, view)
        except Reject as reject:
            return _SetAside(row.file_name, reject)
        return (row, asked, view) if asked else None

    def _seen(self, row: Row, asked: tuple[Asked, ...], view: View) -> Sample | _SetAside:
        try:
            return with_pixels(row, asked, self.side, self.data.max_pixels, view)
        except Reject as reject:
            return _SetAside(row.file_name, reject)

    def _set_aside(
        self, results: Iterable[Sample | _SetAside | None], rejects: Rejects, total: int | None
    ) -> Iterator[Sample | None]:
        """The samples, with None in place of what cannot be used."""
        seen = 0
        limit, setting = self.data.max_rejected_share, "data.max_rejected_share"
        for result in results:
            seen += 1
            if isinstance(result, _SetAside):
                rejects.add("row", result.name, result.reject)
                if total is not None:
                    rejects.check("row", total, limit, setting)
                yield None
            else:
                yield result
        rejects.check("row", seen if total is None else total, limit, setting)

    def _in_places(self, samples: Iterator[Sample | None]) -> Iterator[list[Sample]]:
        while places := list(islice(samples, self.images_per_batch)):
            yield [sample for sample in places if sample is not None]


def grouped(samples: Iterable[Sample], images_per_batch: int, prompts_per_batch: int) -> Iterator[list[Sample]]:
    """The samples in batches of so many images and prompts at most; one with more prompts comes in pieces."""
    group: list[Sample] = []
    asked = 0
    for sample in samples:
        for start in range(0, len(sample.asked), prompts_per_batch):
            piece = replace(sample, asked=sample.asked[start : start + prompts_per_batch])
            if group and (len(group) == images_per_batch or asked + len(piece.asked) > prompts_per_batch):
                yield group
                group, asked = [], 0
            group.append(piece)
            asked += len(piece.asked)
    if group:
        yield group


def _read(group: RowGroup, answers: AnswerStore | None) -> Sequence[Row | _SetAside]:
    try:
        rows = read_rows(group)
        if answers is None:
            return rows
        found = answers.answered(group, rows)
    except Reject as reject:
        return [_SetAside(f"{Path(group.path).name}, row group {group.index}", reject)] * len(group.places)
    return [
        _SetAside(row.file_name, told) if isinstance(told, Reject) else told
        for row, told in zip(rows, found, strict=True)
    ]
