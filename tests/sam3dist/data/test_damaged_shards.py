"""Damaged shards and rows are set aside, counted and limited; they never end a run by themselves."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sam3dist.config.distill import DataConfig
from sam3dist.data.batches import batches, endless
from sam3dist.data.rejects import Rejects
from sam3dist.data.rows import to_table
from sam3dist.data.segments import Segment
from sam3dist.data.shards import Shards, num_phrases, open_shards, read_rows
from sam3dist.errors import DataError
from sam3dist.types import PromptBatch
from tests.sam3dist.data.coco_folder import CocoFolder

SIDE = 16


def config(**changes: object) -> DataConfig:
    return DataConfig(**({"images_per_batch": 4, "prompts_per_image": 2} | changes))


def damaged(coco: CocoFolder, rows: int = 20) -> Shards:
    for _ in range(rows):
        coco.instance(coco.image())
    coco.prepare(rows_per_group=2, rows_per_shard=4)
    return open_shards(coco.out)


def ids(made: list[PromptBatch]) -> list[int]:
    return [image for batch in made for image in batch.image_ids]


def read_all(shards: Shards, training: bool = True, **changes: object) -> tuple[list[PromptBatch], Rejects]:
    rejects = Rejects()
    stream = batches(shards.row_groups, config(**changes), SIDE, seed=0, epoch=0, training=training, rejects=rejects)
    return list(stream), rejects


def test_a_truncated_shard_is_set_aside(coco: CocoFolder):
    shards = damaged(coco)
    path = Path(shards.row_groups[0].path)
    path.write_bytes(path.read_bytes()[:-50])
    made, rejects = read_all(shards, max_rejected_share=0.3)
    assert len(ids(made)) == 16
    assert rejects.by_reason == {"corrupt shard": 4}
    with pytest.raises(DataError, match=r"data.max_rejected_share=0.1: .* of 20 row records .*corrupt shard"):
        read_all(shards, max_rejected_share=0.1)


def test_a_missing_shard_is_set_aside(coco: CocoFolder):
    shards = damaged(coco)
    Path(shards.row_groups[0].path).unlink()
    assert read_all(shards, False, max_rejected_share=0.2)[1].by_reason == {"corrupt shard": 4}


def test_a_shard_with_flipped_bits_never_ends_the_run(coco: CocoFolder):
    shards = damaged(coco)
    path = Path(shards.row_groups[0].path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):
        bad = bytearray(good)
        for place in rng.integers(0, len(good), 30):
            bad[place] ^= 0xFF
        path.write_bytes(bytes(bad))
        made, rejects = read_all(shards, max_rejected_share=0.2)
        assert len(ids(made)) + rejects.by_kind["row"] == 20
        assert set(rejects.by_reason) == {"corrupt shard"}  # page checksums: no damage reaches a decoder


def test_a_parquet_file_of_something_else_is_set_aside(coco: CocoFolder):
    shards = damaged(coco)
    phrases = num_phrases(shards, 10)
    pq.write_table(pa.table({"a": [1, 2, 3, 4]}), shards.row_groups[0].path, row_group_size=2)
    assert read_all(shards, max_rejected_share=0.2)[1].by_reason == {"foreign shard": 4}
    assert num_phrases(shards, 10) == 0.6 * phrases


def test_damaged_rows_leave_a_gap_and_move_no_other(coco: CocoFolder):
    shards = damaged(coco)
    whole, _ = read_all(shards)
    first = shards.row_groups[0]
    rows = [row for index in (0, 1) for row in read_rows(replace(first, index=index))]
    rows[0] = replace(rows[0], image=rows[0].image[:100])
    cat = rows[1].prompts[0]
    wider = cat.instances[0].counts + np.eye(len(cat.instances[0].counts), dtype=np.uint32)[-1] * rows[1].height
    wide = replace(cat, instances=(replace(cat.instances[0], counts=wider),))
    rows[1] = replace(rows[1], width=rows[1].width + 1, prompts=(wide,))
    cat = rows[2].prompts[0]
    torn = replace(cat, instances=(replace(cat.instances[0], counts=np.array([3], np.uint32)),))
    rows[2] = replace(rows[2], prompts=(torn,))
    pq.write_table(to_table(rows), first.path, row_group_size=2)
    made, rejects = read_all(shards, negative_share=0.0, max_rejected_share=0.2)
    assert rejects.by_reason == {"corrupt image": 1, "image size": 1, "rle counts": 1}
    left = [tuple(i for i in batch.image_ids if i not in (1, 2, 3)) for batch in whole]
    assert [batch.image_ids for batch in made] == [batch for batch in left if batch]


def test_the_next_batch_stands_in_for_one_without_a_usable_row_so_a_run_resumes_exactly(coco: CocoFolder):
    shards = damaged(coco)
    data = config(images_per_batch=1, max_rejected_share=0.2)

    def made(start: int, end: int) -> list[PromptBatch]:
        stream = endless(shards.row_groups, data, SIDE, seed=6, history=[Segment("", 1, 1, 1, 1, start)])
        with closing(stream):
            return list(islice(stream, end - start))

    whole = ids(made(0, 60))
    path = Path(shards.row_groups[0].path)
    path.write_bytes(path.read_bytes()[:-50])
    bad = {1, 2, 3, 4}
    assert {whole[39], whole[40]} < bad, "an epoch ends and the next begins with a gap"
    expected = [next(image for image in whole[place:] if image not in bad) for place in range(50)]
    missing = [{"corrupt shard": 1} if image in bad else {} for image in whole[:50]]
    for start in range(50):
        resumed = made(start, 50)
        assert ids(resumed) == expected[start:]
        assert [batch.rejected for batch in resumed] == missing[start:]


def test_a_bad_row_among_the_last_of_an_epoch_does_not_end_the_run(coco: CocoFolder):
    shards = damaged(coco)
    data = config(max_rejected_share=0.2)

    def last_of_the_epoch() -> list[PromptBatch]:
        two_ranks = Segment("", 2, 1, 2, 3, 3)  # 9 of their 10 rows each
        with closing(endless(shards.row_groups, data, SIDE, seed=0, history=[two_ranks])) as stream:
            return list(islice(stream, 6))

    bad, good = last_of_the_epoch()[0].image_ids
    assert (bad - 1) // 4 != (good - 1) // 4, "not in one file of four rows"
    Path(shards.row_groups[(bad - 1) // 2].path).unlink()  # half of what is left, a fifth of all
    found = last_of_the_epoch()
    assert found[0].image_ids == (good,)
    assert found[0].rejected == {"corrupt shard": 1}
    assert len(ids(found[1:])) == 16


def test_an_epoch_without_a_usable_row_ends_the_run(coco: CocoFolder):
    shards = damaged(coco)
    data = config(max_rejected_share=1, max_pixels=9)
    with (
        pytest.raises(DataError, match="not one row of a worker's share in epoch 0 can be used"),
        closing(endless(shards.row_groups, data, SIDE, seed=0)) as stream,
    ):
        next(stream)


def test_images_above_the_pixel_limit_are_not_decoded(coco: CocoFolder):
    shards = damaged(coco, 4)
    assert read_all(shards, max_pixels=100, max_rejected_share=1)[1].by_reason == {"too many pixels": 4}


def test_a_stream_of_row_groups_is_checked_at_its_end(coco: CocoFolder):
    shards = damaged(coco)
    Path(shards.row_groups[0].path).unlink()
    stream = batches(iter(shards.row_groups), config(), SIDE, seed=0, epoch=0, training=True)
    with pytest.raises(DataError, match="4 of 20 row records"):
        list(stream)
