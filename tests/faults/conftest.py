"""The cluster that things happen to, the run that nothing happened to, and the table of what came of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import scenes, tiny_settings  # noqa: F401
from tests.faults.job import Job, table
from tests.faults.nodes import ROOT, Nodes, nodes

STEPS, EVERY = 160, 20
"""Steps of a run, and between its checkpoints."""
ROWS: list[dict[str, Any]] = []
OUT = Path(os.environ.get("SAM3DIST_FAULTS", "runs/faults.json"))
"""Where the table is written for README."""

Note = Callable[..., None]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head and two machines with a CPU each."""
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
    root = tmp_path_factory.mktemp("nodes")
    here = Path(__file__).parent
    spoilt = {"PYTHONPATH": f"{here / 'spoilt'}:{here.parents[1]}", "SPOIL": str(root / "spoil")}
    with nodes(root, **keys, **spoilt) as running:
        for number in range(3):
            running.start(number)
        running.wait_for_cpus(2)
        yield running


@pytest.fixture
def two_nodes(cluster: Nodes) -> Nodes:
    """The cluster with its two machines there and idle; those that a test has lost are replaced."""
    for number, node in sorted(cluster.nodes.items()):
        if ROOT:
            node.heal()
        running = node.process is not None and node.process.poll() is None
        if number <= 2 and not running:
            cluster.start(number)
        elif number > 2 and running:
            node.kill()
    cluster.wait_for_cpus(2)
    assert cluster.leftovers() == []
    return cluster


@pytest.fixture(scope="session")
def settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    """Of a run of two workers whose bits do not depend on threads."""
    return {
        **tiny_settings,
        "student.init": "copy",
        "strategy.num_workers": 2,
        "strategy.precision": "fp32",
        "optim.steps": STEPS,
        "eval.every_steps": 1000,
        "checkpoint.every_steps": EVERY,
    }


@pytest.fixture
def job(two_nodes: Nodes, settings: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts a run; its arguments are settings and, with capital letters, variables of the driver's environment."""
    runs: list[Job] = []

    def start(changes: dict[str, Any] | None = None, **variables: str) -> Job:
        started = Job(two_nodes, tmp_path / "run", {**settings, **(changes or {})}, variables)
        started.start()
        runs.append(started)
        return started

    yield start
    for each in runs:  # one whose test has failed
        if each.process is not None and each.process.poll() is None:
            each.kill()


@pytest.fixture(scope="session")
def undisturbed(cluster: Nodes, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the same run without a fault."""
    quiet = Job(cluster, tmp_path_factory.mktemp("undisturbed") / "run", settings)
    quiet.start()
    return quiet.finish()


@pytest.fixture
def note() -> Note:
    """Adds a row to the table."""

    def add(fault: str, happened: str, seconds: float | None, lost: int | str) -> None:
        ROWS.append({"fault": fault, "happened": happened, "seconds": seconds, "lost": lost})
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(ROWS, indent=1))

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if ROWS:
        terminalreporter.write_line("")
        terminalreporter.write_line(table(ROWS))
