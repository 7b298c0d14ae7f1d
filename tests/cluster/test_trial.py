"""What becomes of a trial whose memory is full, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.trial import HALVED, half_batches, own_storage, with_half_where_full
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.errors import MemoryFullError


def run(**changes: Any) -> DistillConfig:
    return with_overrides(DistillConfig(), {"data.images_per_batch": 8, "optim.accumulate": 3, **changes})


class Machine:
    """Trains so many images a batch, and not more."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.asked: list[tuple[int, int]] = []

    def __call__(self, config: DistillConfig) -> dict[str, Any]:
        self.asked.append((config.data.images_per_batch, config.optim.accumulate))
        if config.data.images_per_batch > self.images:
            raise MemoryFullError("CUDA out of memory")
        return {"step": 1}


def test_a_full_memory_is_tried_once_more_with_half_the_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    machine, halved = Machine(4), tmp_path / "000" / HALVED
    assert with_half_where_full(halved, run(), machine) == {"step": 1}
    assert machine.asked == [(8, 3), (4, 6)]  # an update learns from 24 images either way
    assert "again with half the images" in capsys.readouterr().out
    assert with_half_where_full(halved, run(), machine) == {"step": 1}  # taken up again after a crash
    assert machine.asked[2:] == [(4, 6)]


def test_a_memory_that_is_full_with_half_the_batch_fails_the_trial(tmp_path: Path):
    machine = Machine(2)
    with pytest.raises(MemoryFullError):
        with_half_where_full(tmp_path / HALVED, run(), machine)
    assert machine.asked == [(8, 3), (4, 6)]


def test_a_single_image_cannot_be_halved(tmp_path: Path):
    machine = Machine(0)
    with pytest.raises(MemoryFullError):
        with_half_where_full(tmp_path / HALVED, run(**{"data.images_per_batch": 1}), machine)
    assert machine.asked == [(1, 3)]
    assert not (tmp_path / HALVED).exists()


def test_an_odd_batch_loses_an_image():
    config = half_batches(run(**{"data.images_per_batch": 5}))
    assert (config.data.images_per_batch, config.optim.accumulate) == (2, 6)


def test_trials_in_an_object_store_have_places_of_their_own():
    shared = run(**{"checkpoint.storage_path": "s3://bucket/run?region=x"})
    assert own_storage(shared, "trials", "003") == {"checkpoint.storage_path": "s3://bucket/run/trials/003?region=x"}
    assert own_storage(run(), "trials", "003") == {}
