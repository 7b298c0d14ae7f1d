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

import torch
from torch import nn

from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.data.batches import calibration_batches, endless, evaluation_batches
from sam3dist.data.samples.write import scene_shards
from sam3dist.data.shards import Shards, open_shards
from sam3dist.engine.folder import CheckpointFolder
from sam3dist.engine.loop import train
from sam3dist.evaluate import evaluate
from sam3dist.models.segmenter import Pupil
from sam3dist.models.student import build_student
from sam3dist.models.teacher import load_teacher
from sam3dist.strategies.protocol import make_strategy

ARMS: Mapping[str, Mapping[str, Any]] = {
    "with": {},
    "without": {"distillation.beta": 0.0, "distillation.gamma": 0.0},
}


def quality(config: DistillConfig, learn: Shards, test: Shards) -> tuple[float, float]:
    """mIoU over positive pairs of unseen scenes, before and after training."""
    teacher = load_teacher(config.teacher.source)
    looked_at = calibration_batches(
        learn, config.data, teacher.image_size, config.student.calibration_images, config.run.seed
    )
    student = build_student(config.student, teacher, config.run.seed, looked_at)
    taught = config.distillation.beta > 0 or config.distillation.gamma > 0
    torch.manual_seed(config.run.seed)
    pupil = Pupil(student, teacher.feature_widths if config.distillation.gamma > 0 else {})
    side = max(student.image_size, teacher.image_size)

    def measure(module: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(test, config.data, student.image_size)
        return evaluate(module, batches, config.eval.threshold, device="cpu")

    with tempfile.TemporaryDirectory() as directory:
        report = train(
            config,
            pupil=pupil,
            teacher=teacher if taught else None,
            strategy=make_strategy(config),
            batches=endless(learn.row_groups, config.data, side, seed=config.run.seed),
            evaluate=measure,
            publish=lambda report: None,
            folder=CheckpointFolder(directory),
        )
    if report.step < config.optim.steps:  # SIGTERM ends a run in order
        raise SystemExit(f"stopped at step {report.step} of {config.optim.steps}")
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
