"""The samples of one epoch: row groups are read, rows mixed, phrases drawn, and images decoded in threads.

Which rows make a batch follows from (seed, epoch) and the row groups alone. A row that cannot be used leaves a
gap in its batch and moves no other row, so that a run can resume in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sam3dist.data.buffers import ImageBuffers
from sam3dist.data.decode import PLAIN, Asked, Sample, View, decode_questions, with_pixels
from sam3dist.data.prompts import draw_prompts
from sam3dist.data.rejects import Reject, Rejects
from sam3dist.data.rows import Prompt, Row
from sam3dist.data.shards import RowGroup, read_rows
from sam3dist.data.threads import ordered_map

if TYPE_CHECKING:
    from sam3dist.config.distill import DataConfig
    from sam3dist.teaching.store import AnswerStore

MIX_GROUPS = 4
"""Row groups whose rows are mixed in training."""
TOGETHER = 4
"""Rows of one piece of a thread's work. All their phrases come first, then all their images: between images, what
little each phrase needs takes two to three times as long as among its like."""


def mixing(seed: int, epoch: int) -> np.random.Generator:
    """Whose permutations are the orders of the rows of each MIX_GROUPS references of a share, one after the other."""
    return np.random.default_rng((seed, epoch, 1))


def drawn_view(size: tuple[int, int], data: DataConfig, rng: Random) -> View:
    """How one step looks at an image of `size` (height, width)."""
    flip = data.horizontal_flip and rng.random() < 0.5
    window, colours = None, PLAIN.colours
    if data.crop_share < 1:
        share = rng.uniform(data.crop_share, 1) ** 0.5  # of each side, so that the image keeps its shape
        height, width = (max(1, round(share * length)) for length in size)
        top, left = (rng.randrange(whole - part + 1) for whole, part in zip(size, (height, width), strict=True))
        window = (top, left, height, width)
    if data.colour_jitter > 0:
        brightness, contrast, saturation = (1 + data.colour_jitter * rng.uniform(-1, 1) for _ in range(3))
        colours = (brightness, contrast, saturation)
    return View(window, flip, colours)


@dataclass(frozen=True)
class SetAside:
    """A row that cannot be used, and why."""

    name: object
    reject: Reject
    image_id: int = -1
    """-1 where the row could not even be read."""


@dataclass(frozen=True)
class Epoch:
    """The samples of one epoch, from row groups that are in order already."""

    data: DataConfig
    side: int
    seed: int
    epoch: int
    training: bool
    images_per_batch: int
    prompts_per_batch: int
    answers: AnswerStore | None = None

    def places(
        self,
        row_groups: Iterable[RowGroup],
        rejects: Rejects | None,
        skip: int = 0,
        buffers: ImageBuffers | None = None,
        least_rows: int = 0,
    ) -> Iterator[list[Sample]]:
        """The usable samples of each batch after the first `skip`; in training there may be none.

        Training decodes into the images of batches, which `buffers` lend. `data.max_rejected_share` is of `least_rows`
        where the row groups have fewer: one bad row of the last three is no reason to stop.
        """
        rejects = Rejects() if rejects is None else rejects
        ahead = self.data.decode_threads + 1 + self.images_per_batch // TOGETHER
        rows = self._placed(self._rows(row_groups, skip * self.images_per_batch), buffers)
        pieces = iter(lambda: list(islice(rows, TOGETHER)), [])
        with closing(ordered_map(self._samples, pieces, self.data.decode_threads, ahead)) as results:
            total = None
            if isinstance(row_groups, Sequence):
                total = max(least_rows, sum(len(group.places) for group in row_groups))
            samples = self._set_aside(chain.from_iterable(results), rejects, total)
            if self.training:
                yield from self._in_places(samples)
            else:
                usable = (sample for sample in samples if sample is not None)
                yield from grouped(usable, self.images_per_batch, self.prompts_per_batch)

    def _rows(self, row_groups: Iterable[RowGroup], skip: int) -> Iterator[Row | SetAside]:
        """The rows in the order of this epoch, after the first `skip`."""
        # One ahead: reading is done in the time that decoding takes.
        with closing(ordered_map(self._mixed, self._orders(row_groups, skip), threads=1, ahead=2)) as mixes:
            yield from chain.from_iterable(mixes)

    def _placed(
        self, rows: Iterable[Row | SetAside], buffers: ImageBuffers | None
    ) -> Iterator[tuple[Row | SetAside, tuple[Tensor, int] | None]]:
        """The rows, each with the place of its pixels in the images of its batch, if it has one."""
        for number, row in enumerate(rows):
            place = number % self.images_per_batch
            if place == 0 and buffers is not None:
                images = buffers.lend()
            yield row, None if buffers is None else (images, place)

    def _orders(self, row_groups: Iterable[RowGroup], skip: int) -> Iterator[tuple[list[RowGroup], np.ndarray]]:
        """Row groups that are mixed, and the order of their rows without those that are skipped."""
        rng = mixing(self.seed, self.epoch)
        stream = iter(row_groups)
        while groups := list(islice(stream, MIX_GROUPS if self.training else 1)):
            size = sum(len(group.places) for group in groups)
            order = rng.permutation(size) if self.training else np.arange(size)
            if skip < size:
                yield groups, order[skip:]
            skip = max(skip - size, 0)

    def _mixed(self, mix: tuple[list[RowGroup], np.ndarray]) -> list[Row | SetAside]:
        groups, order = mix
        rows = [row for group in groups for row in read(group, self.answers)]
        return [rows[place] for place in order]

    def _samples(
        self, rows: Sequence[tuple[Row | SetAside, tuple[Tensor, int] | None]]
    ) -> list[Sample | SetAside | None]:
        """The decoded rows with the phrases of this step; None where there is nothing to ask."""
        drawn = [(self._drawn(row), place) for row, place in rows]
        return [self._seen(*found, place) if isinstance(found, tuple) else found for found, place in drawn]

    def _drawn(self, row: Row | SetAside) -> tuple[Row, tuple[Asked, ...], View] | SetAside | None:
        """The row, its phrases of this step, and how it is looked at."""
        if isinstance(row, SetAside):
            return row
        # Of its own for each image, so that threads and skipped batches change nothing.
        rng = Random(f"{self.seed} {self.epoch} {row.image_id}")
        prompts: Sequence[Prompt] = row.prompts
        if self.training:
            prompts = draw_prompts(row.prompts, self.data.prompts_per_image, self.data.negative_share, rng)
        view = drawn_view((row.height, row.width), self.data, rng) if prompts and self.training else PLAIN
        try:
            asked = decode_questions(row, prompts, view)
        except Reject as reject:
            return SetAside(row.file_name, reject, row.image_id)
        return (row, asked, view) if asked else None

    def _seen(
        self, row: Row, asked: tuple[Asked, ...], view: View, place: tuple[Tensor, int] | None
    ) -> Sample | SetAside:
        try:
            return with_pixels(row, asked, self.side, self.data.max_pixels, view, place)
        except Reject as reject:
            return SetAside(row.file_name, reject, row.image_id)

    def _set_aside(
        self, results: Iterable[Sample | SetAside | None], rejects: Rejects, total: int | None
    ) -> Iterator[Sample | None]:
        """The samples, with None in place of what cannot be used."""
        seen = 0
        limit, setting = self.data.max_rejected_share, "data.max_rejected_share"
        for result in results:
            seen += 1
            if isinstance(result, SetAside):
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


def read(group: RowGroup, answers: AnswerStore | None = None) -> Sequence[Row | SetAside]:
    """The rows of a reference, with the answers to them where a store is given; what cannot be read is set aside."""
    try:
        rows = read_rows(group)
        if answers is None:
            return rows
        found = answers.answered(group, rows)
    except Reject as reject:
        return [SetAside(f"{Path(group.path).name}, row group {group.index}", reject)] * len(group.places)
    return [
        SetAside(row.file_name, told, row.image_id) if isinstance(told, Reject) else told
        for row, told in zip(rows, found, strict=True)
    ]
