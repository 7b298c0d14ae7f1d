"""What a worker's process starts with, and that it keeps the memory of a step for the next one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cluster.environment import KEPT_MEMORY, worker_environment
from sam3dist.config.distill import DdpConfig

STEPS = """
import resource, threading

def step():
    freed = [bytearray(b"1") * (6 << 20) for _ in range(12)]

def train():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=train)  # as Ray Train does
thread.start()
thread.join()
"""


def page_faults(**variables: str) -> int:
    """Of ten steps in a thread, each of which takes 72 MB and gives them back."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env={**plain, **variables}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_finds_the_memory_of_the_last_one():
    assert page_faults(**KEPT_MEMORY) < 0.1 * page_faults()


def test_a_worker_has_a_thread_for_each_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    on_cpus = worker_environment(DdpConfig(cpus_per_worker=3.0))
    assert on_cpus == {"OMP_NUM_THREADS": "3", **KEPT_MEMORY}
    assert worker_environment(DdpConfig(cpus_per_worker=0.5, use_gpu=True)) == {"OMP_NUM_THREADS": "1"}


def test_what_a_person_has_set_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    found = worker_environment(DdpConfig())
    assert (found["OMP_NUM_THREADS"], found["MALLOC_ARENA_MAX"]) == ("7", "4")
