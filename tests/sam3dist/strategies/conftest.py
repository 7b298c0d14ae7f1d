from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(scope="package", autouse=True)
def group_of_one() -> Iterator[None]:
    """FSDP and DeepSpeed make a process group of this process alone; no other test is to find it."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
