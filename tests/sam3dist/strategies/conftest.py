from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from tests.sam3dist.strategies.two_ranks import STRATEGIES

# ZeRO-3 hooks into every module, which takes its time.
SLOW = {"deepspeed-3"}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STRATEGIES])
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every strategy in turn."""
    return STRATEGIES[request.param]


@pytest.fixture(scope="package", autouse=True)
def group_of_one() -> Iterator[None]:
    """FSDP and DeepSpeed make a process group of this process alone; no other test is to find it."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
