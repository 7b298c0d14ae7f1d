"""Which sampler finds the front in the fewest trials, on a problem learned from recorded trials.

    python benchmarks/search_samplers.py [--record FILE.jsonl] [--trials 16,32,64] [--seeds 10] [--samplers gp,tpe,...]

The record is that of `benchmarks/search.py`: what real distillations gave for loss knobs and shapes. A Gaussian process
with a length for each knob is fitted to their quality, and its mean stands for the training of a student; its size is
counted. How far that can be trusted is told first: the share of the variance of trials that were left out, in ten
folds, that it explains. Each sampler searches as `sam3dist tune` does. Prints the hypervolume of what it found as a
share of that of the true front (from 50,000 random points and all that any sampler found), the mean and deviation over
seeds, and the time a suggestion takes; last, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from parts.ask_and_tell import Point, ask_and_tell
from search import LOSS, SHAPE
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import cross_val_predict

from sam3dist.config.load import load_preset, with_overrides
from sam3dist.config.search import SearchConfig
from sam3dist.models.size import model_size
from sam3dist.models.student import student_config
from sam3dist.models.teacher import teacher_config
from sam3dist.objective import hypervolume

SAMPLERS = ("gp", "tpe", "nsga2", "random")
SPACE = {**LOSS, **SHAPE}
KNOBS = [key for key, span in SPACE.items() if "one_minus" not in span]
LOGARITHMIC = {key for key, span in SPACE.items() if "loguniform" in span}
RANDOM_POINTS = 50_000


@dataclass(frozen=True)
class Problem:
    """Quality and size of a student that was never trained."""

    model: GaussianProcessRegressor
    scale: tuple[np.ndarray, np.ndarray]

    def __call__(self, values: Mapping[str, Any]) -> Point:
        return float(self.qualities([values])[0]), size_of_shape(tuple(values[key] for key in SHAPE))

    def qualities(self, points: list[Mapping[str, Any]]) -> np.ndarray:
        mean, deviation = self.scale
        return self.model.predict((encoded(points) - mean) / deviation)


def encoded(points: list[Mapping[str, Any]]) -> np.ndarray:
    """[points, knobs]: the values, of those that are searched by their logarithm that."""
    return np.array(
        [[log10(point[key]) if key in LOGARITHMIC else point[key] for key in KNOBS] for point in points], dtype=float
    )


@cache
def base_and_teacher() -> tuple[Any, Any]:
    base = load_preset("smoke")
    return base, teacher_config(base.teacher.source)


@cache
def size_of_shape(shape: tuple[Any, ...]) -> float:
    """Millions of parameters."""
    base, teacher = base_and_teacher()
    config = student_config(with_overrides(base, dict(zip(SHAPE, shape, strict=True))).student, teacher)
    return model_size(config).params_millions


def learned(rows: list[Mapping[str, Any]]) -> tuple[Problem, float]:
    """The problem, and the share of the variance of left-out trials that it explains."""
    inputs, qualities = encoded([row["key"] for row in rows]), np.array([row["quality"] for row in rows])
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-9
    kernel = ConstantKernel(0.1) * Matern(np.ones(len(KNOBS)), (0.1, 100.0), nu=2.5) + WhiteKernel(0.01)
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=3, random_state=0)
    scaled = (inputs - mean) / deviation
    left_out = cross_val_predict(model, scaled, qualities, cv=10)
    explained = 1 - float(((qualities - left_out) ** 2).sum() / ((qualities - qualities.mean()) ** 2).sum())
    return Problem(model.fit(scaled, qualities), (mean, deviation)), explained


def random_points(problem: Problem, count: int) -> list[Point]:
    """Of the whole space, for its true front."""
    generator = np.random.default_rng(0)

    def drawn(span: Mapping[str, Any]) -> Any:
        if "choice" in span:
            return span["choice"][generator.integers(len(span["choice"]))]
        if "integer" in span:
            return int(generator.integers(span["integer"][0], span["integer"][1] + 1))
        low, high = span.get("loguniform") or span["uniform"]
        return (
            10 ** generator.uniform(log10(low), log10(high)) if "loguniform" in span else generator.uniform(low, high)
        )

    points = [{key: drawn(SPACE[key]) for key in KNOBS} for _ in range(count)]
    sizes = (size_of_shape(tuple(point[key] for key in SHAPE)) for point in points)
    return list(zip(map(float, problem.qualities(points)), sizes, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=Path("runs/search-benchmark.jsonl"))
    parser.add_argument("--trials", default="16,32,64")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    options = parser.parse_args()
    if not options.record.is_file():
        parser.error(f"{options.record}: no such record; benchmarks/search.py writes one")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = [json.loads(line) for line in options.record.read_text(encoding="utf-8").splitlines()]
    problem, explained = learned(rows)
    print(f"{len(rows)} trials recorded; the model explains {100 * explained:.0f} % of the variance of those left out")
    budgets = sorted(int(number) for number in options.trials.split(","))
    _, teacher = base_and_teacher()
    reference = (0.0, model_size(teacher).params_millions)
    found: dict[str, list[list[Point]]] = {}
    seconds: dict[str, float] = {}
    for sampler in options.samplers.split(","):
        began = time.perf_counter()
        startup = {} if sampler == "random" else {"startup_trials": 8}
        found[sampler] = [
            [
                point
                for _, point in ask_and_tell(
                    SearchConfig.model_validate(
                        {"space": SPACE, "trials": budgets[-1], "sampler": sampler, "seed": seed, **startup}
                    ),
                    None,
                    problem,
                )
            ]
            for seed in range(options.seeds)
        ]
        seconds[sampler] = (time.perf_counter() - began) / options.seeds / budgets[-1]
    everything = [point for runs in found.values() for points in runs for point in points]
    best = hypervolume([*random_points(problem, RANDOM_POINTS), *everything], reference, log_size=True)
    print(f"\n{'share of the true hypervolume':<32}" + "".join(f"{f'{budget} trials':>18}" for budget in budgets))
    shares: dict[str, dict[int, list[float]]] = {}
    for sampler, runs in found.items():
        shares[sampler] = {
            budget: [hypervolume(points[:budget], reference, log_size=True) / best for points in runs]
            for budget in budgets
        }
        columns = (
            f"{statistics.mean(each):>10.3f} ± {statistics.pstdev(each):.3f}" for each in shares[sampler].values()
        )
        print(f"{sampler:<20}{1000 * seconds[sampler]:>8.0f} ms " + "  ".join(columns))
    means = {name: {budget: statistics.mean(each) for budget, each in of.items()} for name, of in shares.items()}
    print(json.dumps({"shares": means, "explained": explained, "seeds": options.seeds, "trials_recorded": len(rows)}))


if __name__ == "__main__":
    main()
