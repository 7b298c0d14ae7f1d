"""What a worker makes of its troubles, without a cluster."""

from __future__ import annotations

import pytest
import torch

from cluster.worker import memory_explained
from sam3dist.errors import ResourceError


def test_a_full_gpu_is_one_line_with_the_settings_to_lower():
    said = "CUDA out of memory. Tried to allocate 2.12 GiB. GPU 0 has a total capacity of 15.77 GiB"
    with pytest.raises(ResourceError, match=r"^CUDA out of memory; lower data\.images_per_batch"), memory_explained():
        raise torch.OutOfMemoryError(said)
