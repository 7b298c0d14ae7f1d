"""Loss and shape searched together, against chance, and against shape first and loss weights afterwards.

    python benchmarks/search.py [--trials 10] [--seeds 3] [--steps 40] [--record FILE.jsonl] [key=value ...]

Every trial is a real distillation on generated scenes, without Ray, from the smoke preset. All three arms train equally
many students for equally many steps with the same sampler seeds:

    joint      loss knobs and shape in one space, the sampler of --sampler
    random     the same space, points by chance
    two_stage  half of the trials for the shape, with the recommended loss; the rest for the loss knobs, on the shapes
               that are on the front of the first half

The figure is the hypervolume of each arm's front: quality (mIoU over all pairs) times decades of size below the
teacher's, that no student beats. A trial is written to --record as soon as it ends and is not trained again. Prints a
line per trial, a table of seeds and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import optuna
from parts.ask_and_tell import SHAPES, Found, Point, ask_and_tell
from parts.bare_run import bare_run, make_pupil, measured_on

from cluster.searcher import Refusal
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.config.search import SearchConfig
from sam3dist.data.samples.write import scene_shards
from sam3dist.data.shards import Shards, open_shards
from sam3dist.models.size import model_size
from sam3dist.models.teacher import load_teacher
from sam3dist.objective import hypervolume, pareto_front

LOSS = {
    "distillation.temperature": {"uniform": [1.0, 8.0]},
    "distillation.alpha": {"uniform": [0.05, 0.95]},
    "distillation.beta": {"one_minus": "distillation.alpha"},
    "distillation.gamma": {"uniform": [0.0, 3.0]},
    "optim.learning_rate": {"loguniform": [1.0e-4, 1.5e-3]},
}
SHAPE = {
    "student.vision_width": {"choice": [64, 96, 128]},
    "student.vision_depth": {"integer": [1, 4]},
    "student.decoder_layers": {"integer": [1, 3]},
    "student.text_width": {"choice": [32, 64]},
}
RECOMMENDED = {
    "distillation.temperature": 4.0,
    "distillation.alpha": 0.5,
    "distillation.beta": 0.5,
    "distillation.gamma": 0.0,
}
SETTINGS = {"eval.max_images": 32}
ARMS = ("joint", "random", "two_stage")
QUALITY = "miou_all"


@dataclass(frozen=True)
class Trials:
    """Trains students, and remembers all that were ever trained."""

    base: DistillConfig
    learn: Shards
    test: Shards
    record: Path

    def known(self, key: Mapping[str, Any]) -> Point | None:
        if not self.record.is_file():
            return None
        for line in self.record.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["key"] == key:
                return row["quality"], row["params_millions"]
        return None

    def __call__(self, values: Mapping[str, Any], run_seed: int) -> Point:
        """Quality and size of the student of these values."""
        key = {**values, "run.seed": run_seed, "optim.steps": self.base.optim.steps}
        found = self.known(key)
        if found is not None:
            return found
        began = time.perf_counter()
        config = with_overrides(self.base, {**values, "run.seed": run_seed})
        teacher = load_teacher(config.teacher.source)
        pupil = make_pupil(config, teacher, self.learn)
        report = bare_run(config, teacher, pupil, self.learn, measured_on(config, self.test, pupil.student.image_size))
        row = {
            "key": key,
            "quality": report.metrics[QUALITY],
            "metrics": {name: round(value, 4) for name, value in report.metrics.items() if isfinite(value)},
            "params_millions": report.params_millions,
            "seconds": round(time.perf_counter() - began, 1),
        }
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with self.record.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        return row["quality"], row["params_millions"]


@dataclass(frozen=True)
class Arm:
    """One way to spend so many trials: what suggests, what may be trained, and how it is trained."""

    name: str
    seed: int
    sampler: str
    trials: Trials
    refuse: Refusal

    def points(self, count: int) -> list[Point]:
        """Quality and size of `count` students."""
        if self.name == "two_stage":
            return self._two_stages(count)
        recommended = {key: RECOMMENDED[key] for key in RECOMMENDED if "one_minus" not in LOSS[key]}
        return [point for _, point in self._searched({**LOSS, **SHAPE}, count, first=recommended)]

    def _two_stages(self, count: int) -> list[Point]:
        settled = {key: {"choice": [value]} for key, value in RECOMMENDED.items()}
        first = self._searched({**SHAPE, **settled}, count // 2)
        front = pareto_front([point for _, point in first])
        shapes = [json.dumps({key: first[place][0][key] for key in SHAPE}) for place in front]
        second = self._searched({SHAPES: {"choice": shapes}, **LOSS}, count - count // 2)
        return [point for _, point in [*first, *second]]

    def _searched(self, space: Mapping[str, Any], count: int, first: Mapping[str, Any] | None = None) -> Found:
        startup = {} if self.sampler == "random" else {"startup_trials": max(2, count // 3)}
        settings = {"space": space, "trials": count, "sampler": self.sampler, "seed": self.seed, **startup}
        return ask_and_tell(
            SearchConfig.model_validate({**settings, "seeds": [first] if first else []}), self.refuse, self._trained
        )

    def _trained(self, values: Mapping[str, Any]) -> Point:
        began = time.perf_counter()
        point = self.trials(values, self.seed)
        shown = "  ".join(f"{key.rpartition('.')[2]} {value:.3g}" for key, value in values.items())
        took = time.perf_counter() - began
        print(f"{self.name:<10} {self.seed}  {point[0]:.4f}  {point[1]:.3f} M  {took:5.1f} s  {shown}", flush=True)
        return point


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10, help="students of each arm and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="updates of each student")
    parser.add_argument("--images", type=int, default=128, help="training scenes")
    parser.add_argument("--sampler", choices=("tpe", "gp", "nsga2"), default="tpe", help="of joint and two_stage")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--record", type=Path, default=Path("runs/search-benchmark.jsonl"), help="of all trials")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the smoke preset")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    changes = {**SETTINGS, "optim.steps": options.steps, "eval.every_steps": options.steps}
    changes |= dict(item.split("=", 1) for item in options.overrides)
    base = with_overrides(load_preset("smoke"), changes)
    teacher = load_teacher(base.teacher.source).net.config
    reference = model_size(teacher).params_millions
    areas: dict[str, list[float]] = {arm: [] for arm in options.arms.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        learn = open_shards(scene_shards(Path(folder), options.images, seed=100))
        test = open_shards(scene_shards(Path(folder), 32, seed=101))
        trials = Trials(base, learn, test, options.record)
        for seed in range(options.seeds):
            for name, found in areas.items():
                sampler = "random" if name == "random" else options.sampler
                points = Arm(name, seed, sampler, trials, Refusal(base, teacher)).points(options.trials)
                found.append(hypervolume(points, (0.0, reference), log_size=True))
                print(f"{name:<10} {seed}  hypervolume {found[-1]:.4f}", flush=True)
    print("\nhypervolume " + "".join(f"{f'seed {seed}':>10}" for seed in range(options.seeds)) + f"{'mean':>10}")
    for arm, found in areas.items():
        print(f"{arm:<12}" + "".join(f"{area:>10.4f}" for area in [*found, statistics.mean(found)]))
    means = {f"hypervolume_{arm}": statistics.mean(found) for arm, found in areas.items()}
    print(json.dumps({**means, "each": areas, "trials": options.trials, "steps": options.steps}))


if __name__ == "__main__":
    main()
