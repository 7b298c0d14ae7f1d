"""The references of a run: every row once an epoch, resumable by any number of workers, and free of CPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from cluster.streams import (
    TRAIN,
    Deal,
    expected,
    make_deal,
    reference_dataset,
    references,
    split_config,
    training_batches,
)
from sam3dist.config.distill import DataConfig, DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.data.segments import Segment, after_batches, going_on
from sam3dist.data.shards import RowGroup, Shards, open_shards
from sam3dist.data.shares import Shares
from sam3dist.errors import DataError
from sam3dist.types import PromptBatch

GROUPS = [RowGroup("a.parquet", index, rows) for index, rows in enumerate((7, 8, 3))]


def rows_by_epoch(rows: list[dict[str, Any]]) -> Counter[tuple[int, str, int, int]]:
    """How often each row (epoch, path, row group, place) is under a reference."""
    seen: Counter[tuple[int, str, int, int]] = Counter()
    for row in rows:
        for place in range(row["part"], row["rows"], row["parts"]):
            seen[row["epoch"], row["path"], row["index"], place] += 1
    return seen


def test_every_epoch_has_every_reference_once_in_an_order_of_its_own():
    stream = list(islice(references(GROUPS, seed=0), 9))
    orders = [[row["index"] for row in stream[start : start + 3]] for start in (0, 3, 6)]
    assert [row["epoch"] for row in stream] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert stream == list(islice(references(GROUPS, seed=0), 9))


def batches_of(shards: Shards, seen: int = 0) -> Iterator[PromptBatch]:
    data = DataConfig(images_per_batch=3, prompts_per_image=2)
    deal = Deal(1, 1, 100)
    rows = references(shards.row_groups, 5)
    segments = [replace(deal.segment(shards, 1, 3), batches=seen)]
    return training_batches(rows, deal, shards, data, 56, seed=5, segments=segments, rank=0)


def same(one: PromptBatch, other: PromptBatch) -> bool:
    return one.image_ids == other.image_ids and one.prompts == other.prompts and torch.equal(one.images, other.images)


def test_a_resumed_worker_goes_on_in_the_middle_of_an_epoch(scenes: tuple[Path, Path]):
    shards = open_shards(scenes[0])  # 16 rows: 6 batches an epoch
    whole = list(islice(batches_of(shards), 16))
    for seen in (0, 2, 6, 9, 13):
        resumed = list(islice(batches_of(shards, seen), 16 - seen))
        assert all(same(one, other) for one, other in zip(resumed, whole[seen:], strict=True)), seen


def test_an_epoch_of_batches_has_every_image_once(scenes: tuple[Path, Path]):
    shards = open_shards(scenes[0])
    whole = list(islice(batches_of(shards), 12))
    for epoch in (whole[:6], whole[6:]):
        images = Counter(image for batch in epoch for image in batch.image_ids)
        assert len(images) == shards.rows
        assert set(images.values()) == {1}
    assert [b.image_ids for b in whole[:6]] != [b.image_ids for b in whole[6:]]


def test_references_that_run_out_are_an_error_and_not_the_silent_end_of_training(scenes: tuple[Path, Path]):
    shards = open_shards(scenes[0])
    deal = Deal(1, 1, 1)
    rows = list(islice(references(shards.row_groups, 0), 1))
    data, segments = DataConfig(images_per_batch=4), [deal.segment(shards, 1, 4)]
    with pytest.raises(DataError, match="needs more rows"):
        list(training_batches(rows, deal, shards, data, 56, seed=0, segments=segments, rank=0))


def test_references_that_are_not_those_expected_end_the_run_before_anything_is_trained_on_twice():
    rows = list(islice(references(GROUPS, seed=0), 6))
    dealt = [(row["epoch"], RowGroup("a.parquet", row["index"], row["rows"])) for row in rows]
    assert list(expected(rows, dealt)) == dealt
    rows[1], rows[2] = rows[2], rows[1]
    with pytest.raises(RuntimeError, match=r"Ray Data handed out RowGroup.* of epoch 0 where RowGroup.* was due"):
        list(expected(rows, dealt))


def test_more_workers_than_rows_are_refused(tiny_run: DistillConfig):
    few = Shards(Path("few"), {}, (RowGroup("a.parquet", 0, 3),))
    with pytest.raises(DataError, match=r"3 rows cannot feed 4 workers.*strategy\.num_workers"):
        make_deal(few, with_overrides(tiny_run, {"strategy.num_workers": 4}))


def test_a_run_that_goes_on_with_fewer_workers_has_references_enough(tiny_run: DistillConfig):
    shards = Shards(Path("made"), {"content_sha256": "abc"}, tuple(GROUPS))
    begun = [Segment("abc", 8, 1, 8, 2, batches=1000)]
    config = with_overrides(tiny_run, {"strategy.num_workers": 1, "optim.steps": 1100})
    fresh, resumed = make_deal(shards, config), make_deal(shards, config, begun)
    epochs = (8 * 2 * 1000 + 2 * 100) / 18
    assert fresh.blocks * fresh.per_block / 3 < epochs <= resumed.blocks * resumed.per_block / 3
    again = [replace(fresh.segment(shards, 1, 2), batches=300)]
    assert make_deal(shards, config, again) == fresh, "else a run that resumes as it was would share its rows anew"


@pytest.mark.slow
@pytest.mark.parametrize("per_block", [1, 2])
def test_one_dataset_serves_any_number_of_workers_and_ray_data_needs_no_cpu(
    joined: object, tiny_run: DistillConfig, scenes: tuple[Path, Path], per_block: int
):
    everything = ray.util.placement_group([{"CPU": ray.available_resources()["CPU"]}])
    ray.get(everything.ready(), timeout=30)
    shards = open_shards(scenes[0])
    config = with_overrides(tiny_run, {"strategy.num_workers": 3, "optim.steps": 29})
    deal = replace(make_deal(shards, config), per_block=per_block)
    assert deal.blocks % 2 == 1, "one is left over for two workers"
    dataset = reference_dataset(shards, 5, deal)

    @ray.remote(num_cpus=0)
    def consume(shard: ray.data.DataIterator) -> list[dict[str, Any]]:
        return list(shard.iter_rows())

    def split(world_size: int) -> list[list[dict[str, Any]]]:
        splits = split_config().configure({TRAIN: dataset}, world_size, None, None)
        return ray.get([consume.remote(each[TRAIN]) for each in splits], timeout=60)

    try:
        rows = {world_size: split(world_size) for world_size in (1, 2, 3)}
        assert split(3) == rows[3]
    finally:
        ray.util.remove_placement_group(everything)

    for world_size, parts in rows.items():
        segment, each = deal.segment(shards, world_size, 2), deal.to_each(world_size)
        for rank, part in enumerate(parts):
            assert len(part) >= each
            assert len(list(expected(part[:each], Shares(shards.row_groups, 5).dealt(segment, rank)))) == each
        seen = rows_by_epoch([row for part in parts for row in part[:each]])
        assert set(seen.values()) == {1}
        complete = [epoch for epoch, number in Counter(key[0] for key in seen).items() if number == shards.rows]
        assert complete == list(range(len(complete)))
        assert len(complete) >= 29 * 2 * world_size / shards.rows, "steps, images and workers over rows"

    # Three, two, one and three workers, none of which stops at the end of an epoch.
    images: list[int] = []
    history: tuple[Segment, ...] = ()
    for world_size, per_batch, steps in [(3, 2, 2), (2, 3, 2), (1, 2, 3), (3, 2, 2)]:
        data = DataConfig(images_per_batch=per_batch, prompts_per_image=2)
        segments = going_on(history, deal.segment(shards, world_size, per_batch))
        for rank, part in enumerate(rows[world_size]):
            made = training_batches(part, deal, shards, data, 56, seed=5, segments=segments, rank=rank)
            with closing(made):
                images += [image for batch in islice(made, steps) for image in batch.image_ids]
        history = after_batches(segments, steps)
    times = Counter(images)
    assert len(times) == shards.rows
    assert set(times.values()) == {2, 3}, "two epochs, and some of the third"
