"""What Prometheus finds on a node while a run trains there."""

from __future__ import annotations

import re
import threading
import urllib.request
from pathlib import Path

import pytest
import ray

from cluster.metrics import GAUGES, LOSS, PREFIX, STEP
from cluster.trainer import run_training
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.engine.loggers import read_history

EVERY_S = 1.0


def scraped(url: str) -> dict[tuple[str, str, str, str], float]:
    """Values of our metrics by name, run, trial and term, from the text that Prometheus reads.

    Ray puts its own name before all of them.
    """
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for name, tags, value in re.findall(rf"^ray_({PREFIX}\w+)\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        named = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        found[name.removeprefix(PREFIX), named["run"], named["trial"], named.get("term", "")] = float(value)
    return found


@pytest.mark.slow
def test_a_node_exports_what_the_history_of_the_run_says(joined: object, tiny_run: DistillConfig, tmp_path: Path):
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    seen: list[dict[tuple[str, str, str, str], float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            found = {key: value for key, value in scraped(url).items() if key[1] == "watched"}
            if found and found not in seen:
                seen.append(found)

    watcher = threading.Thread(target=watch)
    watcher.start()
    steps = {"optim.steps": 300, "eval.every_steps": 20, "checkpoint.every_steps": 300}
    try:
        run_training(with_overrides(tiny_run, {**steps, "name": "watched"}), tmp_path)
    finally:
        over.set()
        watcher.join()

    assert all(key[2] == "" for found in seen for key in found)  # no trial
    history = read_history(tmp_path / "history.jsonl")
    whole = 0
    for found in seen:
        by_name = {name if name != LOSS else f"{LOSS}/{term}": value for (name, _, _, term), value in found.items()}
        step = by_name.pop(STEP)
        lines = {line["kind"]: line for line in history if line["step"] <= step}  # the last of each kind
        expected = {
            (f"{LOSS}/{name.removeprefix('loss/')}" if "/" in name else name): value
            for line in lines.values()
            for name, value in line.items()
            if value is not None and ("/" in name or name in GAUGES)
        }
        expected.pop(STEP)
        # A scrape between the gauges of one point sees some of the point before.
        whole += set(expected) <= set(by_name) and {name: by_name[name] for name in expected} == pytest.approx(expected)
    assert whole >= 1, (seen, history)
    undefined = {name for line in history for name, value in line.items() if value is None}
    assert {name for name, *_ in seen[-1]} == set(GAUGES) - undefined
    assert not undefined & {"presence_f1", "miou_all", "miou_positive", "score", "goodput", "step_seconds"}
    terms = {term for name, _, _, term in seen[-1] if name == LOSS}
    assert {"total", "task", "distillation", "feature", "task/dice"} <= terms


def test_every_metric_has_a_name_that_prometheus_takes():
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", PREFIX + name) for name in GAUGES)
