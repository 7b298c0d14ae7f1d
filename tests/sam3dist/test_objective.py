from __future__ import annotations

from math import inf, nan
from types import SimpleNamespace

import numpy as np
import pytest

from sam3dist.errors import ConfigError
from sam3dist.models.size import ModelSize
from sam3dist.objective import LATENCY_REFERENCE_MS, hypervolume, pareto_front, reference_size, score, size_of


def objective(quality: str = "miou_all", size_weight: float = 0.1) -> SimpleNamespace:
    return SimpleNamespace(quality=quality, size_weight=size_weight)


def test_size_is_what_the_objective_calls_so():
    model = ModelSize(2.0, {"int8": 2.1, "int4": 1.2}, {})
    sizes = {"params_millions": 2.0, "megabytes": 1.2, "latency_ms": 33.0}
    for name, expected in sizes.items():
        wanted = SimpleNamespace(size=name, precision="int4")
        assert size_of(model, wanted, latency_ms=33.0) == expected
        assert reference_size(model, wanted) == (LATENCY_REFERENCE_MS if name == "latency_ms" else expected)


def test_score_is_quality_at_the_reference_size_and_gains_the_weight_per_tenfold_shrinking():
    metrics = {"miou_all": 0.6, "dice": 0.7}
    assert score(metrics, 10.0, objective(), 10.0) == 0.6
    assert score(metrics, 1.0, objective(), 10.0) == pytest.approx(0.7)
    assert score(metrics, 100.0, objective("dice", 0.2), 10.0) == pytest.approx(0.5)


@pytest.mark.parametrize("broken", [nan, inf, -inf])
def test_broken_quality_ranks_last(broken: float):
    assert score({"miou_all": broken}, 1.0, objective(), 10.0) == -inf


def test_unmeasured_quality_is_named_with_what_was_measured():
    with pytest.raises(ConfigError, match=r"objective\.quality=dice .* miou_all"):
        score({"miou_all": 0.5}, 1.0, objective("dice"), 10.0)


def test_front_is_what_nothing_beats_smallest_first():
    points = [(0.5, 10.0), (0.7, 20.0), (0.4, 5.0), (0.6, 25.0), (0.3, 6.0)]
    assert pareto_front(points) == [2, 0, 1]


def test_ties_and_duplicates_leave_one_point():
    assert pareto_front([(0.5, 10.0), (0.5, 10.0)]) == [0]
    assert pareto_front([(0.5, 10.0), (0.5, 8.0)]) == [1]  # same quality, smaller
    assert pareto_front([(0.5, 10.0), (0.6, 10.0)]) == [1]  # same size, better


def test_broken_points_are_never_on_the_front():
    assert pareto_front([(nan, 1.0), (0.5, nan), (inf, 1.0), (0.1, -inf), (0.2, 9.0)]) == [4]
    assert pareto_front([(nan, 1.0)]) == pareto_front([]) == []


def test_hypervolume_of_two_steps():
    # (0.4, 2) spans 0.4 x 8; (0.9, 5) adds the strip from 0.4 to 0.9 over 5. (0.3, 6) is beaten.
    points = [(0.9, 5.0), (0.4, 2.0), (0.3, 6.0)]
    assert hypervolume(points, (0.0, 10.0)) == pytest.approx(0.4 * 8 + 0.5 * 5)
    assert hypervolume(points, (0.5, 10.0)) == pytest.approx(0.4 * 5)


def test_hypervolume_on_the_log_axis_counts_tenfolds():
    assert hypervolume([(0.5, 1.0), (1.0, 10.0)], (0.0, 100.0), log_size=True) == pytest.approx(0.5 * 2 + 0.5 * 1)


def test_points_outside_the_reference_add_nothing():
    assert hypervolume([(0.2, 5.0), (0.9, 10.0), (0.9, 11.0), (nan, 1.0)], (0.2, 10.0)) == 0
    assert hypervolume([], (0.0, 1.0)) == 0


def test_front_and_hypervolume_agree_with_brute_force():
    generator = np.random.default_rng(0)
    for _ in range(30):
        points = [tuple(map(float, point)) for point in generator.integers(0, 8, (12, 2))]
        beaten = [
            any(q >= p[0] and s <= p[1] and (q, s) != p for q, s in points) or p in points[:i]
            for i, p in enumerate(points)
        ]
        assert sorted(pareto_front(points)) == [i for i, b in enumerate(beaten) if not b]
        # Unit cells [x, x+1] x [y, y+1] of the rectangle that some point covers.
        cells = sum(any(q >= x + 1 and s <= y for q, s in points) for x in range(1, 8) for y in range(7))
        assert hypervolume(points, (1.0, 7.0)) == cells
