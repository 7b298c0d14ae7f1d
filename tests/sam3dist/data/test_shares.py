"""Nothing twice and nothing left out, however often the number of workers and the size of batches change."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby, islice
from random import Random

import numpy as np
import pytest

from sam3dist.data.segments import Segment
from sam3dist.data.shards import RowGroup
from sam3dist.data.shares import Shares, Unseen

RowOfEpoch = tuple[int, int, int]
"""Epoch, row group, place in it."""


def shards(rng: Random, groups: int, most: int = 12) -> list[RowGroup]:
    """Row groups of one to `most` rows, a dozen to a file."""
    return [RowGroup(f"{index // 12}.parquet", index % 12, rng.randint(1, most)) for index in range(groups)]


def rows_of(groups: Sequence[RowGroup]) -> int:
    return sum(group.rows for group in groups)


def in_epochs(shares: Shares, history: Sequence[Segment], rank: int) -> Iterator[tuple[int, list[RowGroup]]]:
    """What a rank reads in the last segment of a history, from its beginning."""
    unseen = shares.unseen(history[:-1])
    yield from shares.of_rank(unseen, rank, history[-1].world_size)
    for epoch, pairs in groupby(shares.dealt(history[-1], rank), key=lambda pair: pair[0]):
        if epoch >= unseen.first:
            yield epoch, [reference for _, reference in pairs]


def drawn(shares: Shares, history: Sequence[Segment], rank: int) -> Iterator[list[RowOfEpoch]]:
    """The batches of a rank in the last segment, for ever: rows are mixed among four references of an epoch."""
    of = {(group.path, group.index): number for number, group in enumerate(shares.row_groups)}
    for epoch, references in in_epochs(shares, history, rank):
        rng = np.random.default_rng((shares.seed, epoch, 1))
        rows: list[RowOfEpoch] = []
        for start in range(0, len(references), 4):
            four = [
                (epoch, of[reference.path, reference.index], place)
                for reference in references[start : start + 4]
                for place in reference.places
            ]
            rows += [four[place] for place in rng.permutation(len(four))]
        size = history[-1].images_per_batch
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def trained_on(shares: Shares, history: Sequence[Segment]) -> Counter[RowOfEpoch]:
    """How often all the groups of workers of a history have seen each row in each epoch."""
    seen: Counter[RowOfEpoch] = Counter()
    for number, segment in enumerate(history, start=1):
        for rank in range(segment.world_size):
            seen.update(chain.from_iterable(islice(drawn(shares, history[:number], rank), segment.batches)))
    return seen


def random_history(rng: Random, rows: int) -> list[Segment]:
    """A few segments of up to an epoch each; now and then references go round in blocks, or the cut changes."""
    history = []
    for _ in range(rng.randint(2, 5)):
        most = rng.randint(1, min(6, rows))
        images = rng.randint(1, 5)
        world_size = rng.randint(1, most)
        batches = rng.randint(1, 1 + rows // (images * world_size))
        history.append(Segment("", most, rng.choice((1, 1, 3, 10)), world_size, images, batches))
    return history


@pytest.mark.parametrize("case", range(60))
def test_every_row_is_seen_once_in_every_epoch_through_any_changes(case: int):
    rng = Random(case)
    groups = shards(rng, rng.choice((1, 2, 5, 17, 40)))
    shares, rows = Shares(groups, seed=case), rows_of(groups)
    history = random_history(rng, rows)
    seen = trained_on(shares, history)
    assert set(seen.values()) == {1}, "nothing twice"
    images = Counter(epoch for epoch, _, _ in seen)

    unseen = shares.unseen(history)
    per_epoch = {epoch: rows - len(unseen.left.get(epoch, ())) for epoch in range(unseen.first)}
    assert images == {epoch: number for epoch, number in per_epoch.items() if number}, "nothing left out"
    numbers = [(group, place) for group in range(len(groups)) for place in range(groups[group].rows)]
    left = {(epoch, *numbers[number]) for epoch, rows_left in unseen.left.items() for number in rows_left}
    assert not left & set(seen)

    # Any group of workers finishes what was begun, and the epoch after it.
    last = Segment("", 3, 1, rng.randint(1, 3), 2, 0) if rows >= 3 else Segment("", 1, 1, 1, 2, 0)
    enough = 2 * rows + len(unseen.left)
    seen = trained_on(shares, [*history, replace(last, batches=enough)])
    assert set(seen.values()) == {1}
    images = Counter(epoch for epoch, _, _ in seen)
    assert all(images[epoch] == rows for epoch in range(unseen.first + 1))


def test_what_is_left_is_shared_evenly_and_hardly_a_row_group_is_read_twice():
    groups = shards(Random(0), 60)
    shares = Shares(groups, seed=0)
    history = [Segment("", 4, 1, 4, 5, 9)]
    unseen = shares.unseen(history)
    left = rows_of(groups) - 4 * 5 * 9
    assert {epoch: len(rows) for epoch, rows in unseen.left.items()} == {0: left}
    parts = [shares.of_rank(unseen, rank, 3) for rank in range(3)]
    assert all([epoch for epoch, _ in part] == [0] for part in parts)
    sizes = [sum(len(reference.places) for reference in part[0][1]) for part in parts]
    assert sum(sizes) == left
    assert max(sizes) - min(sizes) <= 1
    reads = Counter((reference.path, reference.index) for part in parts for reference in part[0][1])
    assert sum(reads.values()) <= len(reads) + 2, "each cut between two workers is in one row group"
    # Of the four row groups that each worker was mixing some rows are left; of the rest, all or none.
    torn = [reference for part in parts for reference in part[0][1] if reference.chosen is not None]
    assert len(torn) <= 4 * 4 + 2 * 2


def test_a_group_of_workers_that_drew_nothing_leaves_everything_as_it_was():
    groups = shards(Random(1), 20)
    shares = Shares(groups, seed=1)
    assert shares.unseen([Segment("", 3, 1, 3, 4, 0)]) == Unseen()
    one = Segment("", 3, 1, 3, 4, 5)
    before, after = shares.unseen([one]), shares.unseen([one, Segment("", 3, 1, 2, 4, 0)])
    assert before.first == after.first == 1
    np.testing.assert_array_equal(before.left[0], after.left[0])


def test_fewer_rows_left_than_workers_leave_some_without_and_none_waits():
    groups = [RowGroup("a.parquet", 0, 7)]
    shares = Shares(groups, seed=0)
    history = [Segment("", 1, 1, 1, 5, 1), Segment("", 4, 1, 4, 5, 0)]
    parts = [dict(shares.of_rank(shares.unseen(history), rank, 4))[0] for rank in range(4)]
    assert sorted(len(references) for references in parts) == [0, 0, 1, 1]
    first = [next(drawn(shares, history, rank)) for rank in range(4)]
    assert [batch[0][0] for batch in first].count(0) == 2, "two workers finish the epoch and two begin the next"


def test_a_million_rows_are_shared_out_again_within_two_seconds():
    groups = [RowGroup(f"shard-{index // 32:05d}.parquet", index % 32, 32) for index in range(31_250)]
    history = [
        Segment("", 64, 1, 64, 8, 5000),
        Segment("", 64, 1, 61, 8, 300),
        Segment("", 64, 1, 64, 4, 700),
        Segment("", 64, 1, 63, 8, 0),
    ]
    started = time.process_time()
    shares = Shares(groups, seed=0)
    unseen = shares.unseen(history)
    mine = shares.of_rank(unseen, 5, 63)
    assert time.process_time() - started < 2
    images = sum(segment.world_size * segment.images_per_batch * segment.batches for segment in history)
    left = sum(len(rows) for rows in unseen.left.values())
    assert unseen.first * 1_000_000 - left == pytest.approx(images, rel=0.001), "but for short batches"
    assert sum(len(reference.places) for _, part in mine for reference in part) == pytest.approx(left / 63, abs=2)
