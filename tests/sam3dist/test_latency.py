"""The time that a network takes, with a clock of our own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch

from sam3dist import latency
from sam3dist.latency import WARM_UP, latency_ms
from sam3dist.models.segmenter import Segmenter
from tests.sam3dist.runs import run, settings


def test_the_median_of_what_follows_the_warm_up(tiny_teacher: Segmenter, monkeypatch: pytest.MonkeyPatch):
    seconds = chain(repeat(9.0, WARM_UP), (0.010, 0.030, 0.020, 5.0, 0.010))

    def ticks() -> Iterator[float]:
        now = 0.0
        for took in seconds:
            yield now
            now += took
            yield now

    clock = ticks()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    assert latency_ms(tiny_teacher, runs=5) == pytest.approx(20.0)


def test_a_real_network_takes_time_and_stays_as_it_was(tiny_teacher: Segmenter):
    tiny_teacher.train()
    before = {name: value.clone() for name, value in tiny_teacher.state_dict().items()}
    began = time.perf_counter()
    milliseconds = latency_ms(tiny_teacher, runs=3)
    assert 0 < milliseconds < 1000 * (time.perf_counter() - began)
    assert tiny_teacher.training
    assert all(torch.equal(value, before[name]) for name, value in tiny_teacher.state_dict().items())


@pytest.mark.parametrize("size", ["params_millions", "megabytes", "latency_ms"])
def test_a_run_reports_its_size_as_it_was_asked_to(size: str, tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(objective={"size": size, "precision": "int8"}, optim={"steps": 1})
    report, _ = run(config, tiny_teacher, tmp_path)
    found = {"params_millions": report.params_millions, "megabytes": report.megabytes["int8"]}
    assert report.size == found.get(size, report.latency_ms)
    assert (report.latency_ms is not None) == (size == "latency_ms")
    assert report.size > 0
