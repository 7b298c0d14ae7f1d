"""The references of a run: every row once an epoch, resumable, and free of CPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from cluster.streams import TRAIN, reference_dataset, references, split_config, training_batches
from sam3dist.config.distill import DataConfig, DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.data.shards import RowGroup, Shards, open_shards
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


def batches_of(shards: Shards, skip: int = 0) -> Iterator[PromptBatch]:
    data = DataConfig(images_per_batch=3, prompts_per_image=2)
    return training_batches(references(list(shards.row_groups), 5), data, 56, seed=5, skip_batches=skip)


def same(one: PromptBatch, other: PromptBatch) -> bool:
    return one.image_ids == other.image_ids and one.prompts == other.prompts and torch.equal(one.images, other.images)


def test_a_resumed_worker_goes_on_in_the_middle_of_an_epoch(scenes: tuple[Path, Path]):
    shards = open_shards(scenes[0])  # 16 rows: 6 batches an epoch
    whole = list(islice(batches_of(shards), 16))
    for seen in (0, 2, 6, 9, 13):
        resumed = list(islice(batches_of(shards, skip=seen), 16 - seen))
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
    rows = list(islice(references(list(open_shards(scenes[0]).row_groups), 0), 1))
    with pytest.raises(DataError, match="needs more rows"):
        list(training_batches(rows, DataConfig(images_per_batch=4), 56, seed=0))


def test_more_workers_than_rows_are_refused(tiny_run: DistillConfig):
    few = Shards(Path("few"), {}, (RowGroup("a.parquet", 0, 3),))
    with pytest.raises(DataError, match=r"3 rows cannot feed 4 workers.*strategy\.num_workers"):
        reference_dataset(few, with_overrides(tiny_run, {"strategy.num_workers": 4}))


@pytest.mark.slow
def test_workers_share_each_epoch_exactly_and_ray_data_needs_no_cpu(joined: object, tiny_run: DistillConfig):
    everything = ray.util.placement_group([{"CPU": ray.available_resources()["CPU"]}])
    ray.get(everything.ready(), timeout=30)
    shards = Shards(Path("made"), {}, tuple(GROUPS))
    config = with_overrides(tiny_run, {"strategy.num_workers": 3, "optim.steps": 30})

    @ray.remote(num_cpus=0)
    def consume(shard: ray.data.DataIterator) -> list[dict[str, Any]]:
        return list(shard.iter_rows())

    def shares() -> list[list[dict[str, Any]]]:
        splits = split_config().configure({TRAIN: reference_dataset(shards, config)}, 3, None, None)
        return ray.get([consume.remote(split[TRAIN]) for split in splits], timeout=60)

    try:
        first, again = shares(), shares()
    finally:
        ray.util.remove_placement_group(everything)
    assert first == again, "which worker gets what is known, or a run could not be resumed"
    assert len({len(share) for share in first}) == 1
    seen = rows_by_epoch([row for share in first for row in share])
    assert set(seen.values()) == {1}
    complete = [epoch for epoch, rows in Counter(key[0] for key in seen).items() if rows == 18]
    needed = 30 * 2 * 3 / 18  # steps, images and workers over rows
    assert complete == list(range(len(complete)))
    assert len(complete) >= needed
