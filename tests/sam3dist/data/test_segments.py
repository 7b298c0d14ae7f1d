"""The history of a run's data, as a checkpoint keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sam3dist.data.segments import Segment, after_batches, going_on
from sam3dist.errors import CheckpointError

THREE = Segment("abc", cut_for=3, per_block=1, world_size=3, images_per_batch=8)
TWO = replace(THREE, world_size=2)


def test_a_fresh_run_begins_its_first_segment():
    assert going_on((), THREE) == (THREE,)


def test_a_run_that_resumes_as_it_was_goes_on_with_its_last_segment():
    seen = (replace(THREE, batches=5),)
    assert going_on(seen, THREE) == seen
    assert after_batches(going_on(seen, THREE), 2) == (replace(THREE, batches=7),)


@pytest.mark.parametrize("change", [{"world_size": 2}, {"images_per_batch": 4}, {"cut_for": 4}, {"per_block": 2}])
def test_any_change_of_how_rows_come_to_workers_begins_a_segment(change: dict[str, int]):
    seen = (replace(THREE, batches=5),)
    assert going_on(seen, replace(THREE, **change)) == (*seen, replace(THREE, **change))


def test_a_group_of_workers_that_drew_nothing_leaves_no_trace():
    history = going_on(going_on((replace(THREE, batches=5),), TWO), THREE)
    assert history == (replace(THREE, batches=5),)


def test_batches_that_come_from_no_shards_have_no_history():
    assert after_batches((), 3) == ()


def test_other_rows_under_the_same_path_are_refused_once_there_is_a_history():
    other = replace(THREE, content="def")
    assert going_on((THREE,), other) == (other,)
    with pytest.raises(CheckpointError, match=r"^data\.train: it holds other rows .* choose another run\.dir"):
        going_on((replace(THREE, batches=1),), other)
