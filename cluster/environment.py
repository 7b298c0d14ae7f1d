"""The environment variables with which a worker's process starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam3dist.config.distill import StrategyConfig

KEPT_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 1024**3),
}
"""Has glibc keep what a step frees for the next step. Left to itself it gives the memory back, above all where, as in
Ray Train, a thread other than the first trains, and the kernel clears 10,000 pages and more in every step."""


def worker_environment(strategy: StrategyConfig) -> dict[str, str]:
    """A thread for each CPU of a worker and, if it trains on these, KEPT_MEMORY; what a person has set goes first."""
    variables = {"OMP_NUM_THREADS": str(max(1, int(strategy.cpus_per_worker)))}
    if not strategy.use_gpu:
        variables |= KEPT_MEMORY
    return {name: os.environ.get(name, value) for name, value in variables.items()}
