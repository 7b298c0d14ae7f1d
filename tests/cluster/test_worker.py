"""What a worker makes of its troubles, without a cluster."""

from __future__ import annotations

import pytest
import torch

from cluster.worker import batches_seen, memory_explained
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.engine.checkpoint import TrainingState
from sam3dist.errors import ResourceError


def test_a_full_gpu_is_one_line_with_the_settings_to_lower():
    said = "CUDA out of memory. Tried to allocate 2.12 GiB. GPU 0 has a total capacity of 15.77 GiB"
    with pytest.raises(ResourceError, match=r"^CUDA out of memory; lower data\.images_per_batch"), memory_explained():
        raise torch.OutOfMemoryError(said)


@pytest.mark.parametrize(("workers", "left_out"), [(2, 11), (1, 20), (4, 5)])
def test_a_resumed_run_leaves_out_the_images_it_has_seen(tiny_run: DistillConfig, workers: int, left_out: int):
    # 2 workers, 11 batches of 2 images each, of which 2 were the short last ones of an epoch: 40 images.
    state = TrainingState(
        step=11, batches=11, images=40, epoch=2.5, seed=0, strategy="ddp", precision="fp32", world_size=2,
        architecture="", before={},
    )  # fmt: skip
    config = with_overrides(tiny_run, {"strategy.num_workers": workers, "data.images_per_batch": 2})
    assert batches_seen(state, config) == left_out
