"""The same student, data, steps and seeds, with and without the teacher's answers.

    python benchmarks/distillation.py [--steps 200] [--seeds 3] [--images 256]

Both start from the same weights. "without" trains on the labels alone (beta = gamma = 0), "with" adds the embedded
teacher's answers and features. Prints a row per seed and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parts.bare_run import bare_run, make_pupil, measured_on

from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.data.samples.write import scene_shards
from sam3dist.data.shards import Shards, open_shards
from sam3dist.models.teacher import load_teacher

ARMS: Mapping[str, Mapping[str, Any]] = {
    "with": {},
    "without": {"distillation.beta": 0.0, "distillation.gamma": 0.0},
}


def quality(config: DistillConfig, learn: Shards, test: Shards) -> tuple[float, float]:
    """mIoU over positive pairs of unseen scenes, before and after training."""
    teacher = load_teacher(config.teacher.source)
    pupil = make_pupil(config, teacher, learn)
    report = bare_run(config, teacher, pupil, learn, measured_on(config, test, pupil.student.image_size))
    return report.before["miou_positive"], report.metrics["miou_positive"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="updates of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=256, help="training scenes; as many again / 4 are the test")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the smoke preset")
    options = parser.parse_args()
    changes = dict(item.split("=", 1) for item in options.overrides)
    base = with_overrides(load_preset("smoke"), changes)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    print(f"{'seed':>4} {'untrained':>9} {'without':>8} {'with':>8}   mIoU of positive pairs, {options.steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        learn = open_shards(scene_shards(Path(folder), options.images, seed=100))
        test = open_shards(scene_shards(Path(folder), max(8, options.images // 4), seed=101))
        for seed in range(options.seeds):
            for arm, weights in ARMS.items():
                run = {"run.seed": seed, "optim.steps": options.steps, "eval.every_steps": options.steps}
                before, after = quality(with_overrides(base, {**run, **weights}), learn, test)
                found[arm].append(after)
            print(f"{seed:>4} {before:>9.3f} {found['without'][-1]:>8.3f} {found['with'][-1]:>8.3f}", flush=True)
    means = {f"miou_{arm}": statistics.mean(values) for arm, values in found.items()}
    print(json.dumps({**means, "seeds": options.seeds, "each": found, "steps": options.steps}))


if __name__ == "__main__":
    main()
