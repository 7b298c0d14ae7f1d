"""The learning curves of the same student from each start: random, copy, svd, pca and importance.

    python benchmarks/inheritance.py [--steps 80] [--seeds 3] [--narrow] [--out DIR] [key=value ...]

Same shape, data, steps and seeds; only `student.init` differs. Quality and losses are measured on unseen scenes at
steps 0, 10, 20, 40, 80, ... Prints a row per run, a table of means and, last, one JSON object; --out gets curves.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from parts.bare_run import bare_run, make_pupil, measured_on
from torch import nn

from sam3dist.answers import imitable, imitated_features
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.data.batches import evaluation_batches
from sam3dist.data.samples.write import scene_shards
from sam3dist.data.shards import Shards, open_shards
from sam3dist.losses import distillation_loss
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.models.teacher import load_teacher
from sam3dist.plots import SERIES, save, styled

INITS = ("random", "copy", "svd", "pca", "importance")
NARROW = {"student.text_width": 32, "student.detr_width": 32, "student.encoder_layers": 1, "student.decoder_layers": 2}
FIRST = 10
"""The first step at which is measured; then twice as many, and so on."""
LOSS_IMAGES = 16
MEASURES = ("miou_positive", "distillation", "feature", "total")

Curve = dict[int, dict[str, float]]
"""By step: mIoU over positive pairs, and the losses."""


def curve(config: DistillConfig, learn: Shards, test: Shards) -> tuple[Curve, float]:
    """What a student learns in `optim.steps` steps, and the seconds it took to build."""
    teacher = load_teacher(config.teacher.source)
    started = time.perf_counter()
    pupil = make_pupil(config, teacher, learn)
    seconds = time.perf_counter() - started
    side = pupil.student.image_size
    losses = losses_against(teacher, config, test, side)
    quality = measured_on(config, test, side)
    found: Curve = {}
    every = iter(range(0, config.optim.steps + 1, config.eval.every_steps))
    due = measured_steps(config.optim.steps)

    def measure(module: nn.Module) -> dict[str, float]:
        step = next(every)
        if step not in due:
            return {"miou_all": 0.0}  # nobody reads it
        metrics = quality(module)
        found[step] = {"miou_positive": metrics["miou_positive"], **losses(module)}
        return metrics

    bare_run(config, teacher, pupil, learn, measure)
    return found, seconds


def measured_steps(steps: int) -> list[int]:
    """0, 10, 20, 40, ... and the last."""
    found = [0]
    step = FIRST
    while step < steps:
        found.append(step)
        step *= 2
    return [*found, steps]


def losses_against(
    teacher: Segmenter, config: DistillConfig, test: Shards, side: int
) -> Callable[[nn.Module], dict[str, float]]:
    """The mean losses of a module on the first unseen scenes, in eval mode."""
    batches = list(evaluation_batches(test, config.data, max(side, teacher.image_size), max_images=LOSS_IMAGES))
    with torch.no_grad():
        answers = [imitable(segment(teacher, batch), imitated_features(config.distillation)) for batch in batches]

    def losses(module: nn.Module) -> dict[str, float]:
        module.eval()
        with torch.no_grad():
            terms = [
                distillation_loss(segment(module, batch), batch, taught, config.distillation)
                for batch, taught in zip(batches, answers, strict=True)
            ]
        return {name: statistics.mean(float(getattr(term, name)) for term in terms) for name in MEASURES[1:]}

    return losses


def draw(means: Mapping[str, Curve], path: Path) -> Path:
    """mIoU and distillation loss over the steps, a line for each start."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(11.5, 4.4), layout="constrained")
        titles = {"miou_positive": "mIoU, positive pairs", "distillation": "Distillation loss"}
        for axis, (measure, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            for colour, (init, points) in zip(SERIES, means.items(), strict=False):
                values = [point[measure] for point in points.values()]
                axis.plot(list(points), values, color=colour, marker="o", markersize=4, label=init)
            axis.set_title(title)
            axis.set_xlabel("step")
            axis.legend()
        return save(figure, path)


def mean_curve(curves: list[Curve]) -> Curve:
    return {step: {name: statistics.mean(one[step][name] for one in curves) for name in MEASURES} for step in curves[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80, help=f"updates of each run, a multiple of {FIRST}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=256, help="training scenes; as many again / 4 are the test")
    parser.add_argument("--inits", default=",".join(INITS))
    parser.add_argument("--narrow", action="store_true", help="narrow the text tower and the DETR as well")
    parser.add_argument("--out", type=Path, help="folder for curves.png")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the smoke preset")
    options = parser.parse_args()
    if options.steps % FIRST:
        parser.error(f"--steps {options.steps} is not a multiple of {FIRST}")
    changes: dict[str, Any] = NARROW if options.narrow else {}
    changes = {**changes, "optim.steps": options.steps, "eval.every_steps": FIRST}
    changes |= dict(item.split("=", 1) for item in options.overrides)
    base = with_overrides(load_preset("smoke"), changes)
    found: dict[str, list[Curve]] = {init: [] for init in options.inits.split(",")}
    seconds: dict[str, list[float]] = {init: [] for init in found}
    steps = measured_steps(options.steps)
    with tempfile.TemporaryDirectory() as folder:
        learn = open_shards(scene_shards(Path(folder), options.images, seed=100))
        test = open_shards(scene_shards(Path(folder), max(8, options.images // 4), seed=101))
        print("seed init        build  mIoU of positive pairs at step " + " ".join(f"{step:>5}" for step in steps))
        for seed in range(options.seeds):
            for init in found:
                points, took = curve(with_overrides(base, {"run.seed": seed, "student.init": init}), learn, test)
                found[init].append(points)
                seconds[init].append(took)
                values = " ".join(f"{points[step]['miou_positive']:>5.3f}" for step in steps)
                print(f"{seed:>4} {init:<10} {took:>5.1f} s {'':30}{values}", flush=True)
    means = {init: mean_curve(curves) for init, curves in found.items()}
    for measure in MEASURES:
        print(f"\n{measure:<16}" + "".join(f"{step:>9}" for step in steps))
        for init, points in means.items():
            print(f"{init:<16}" + "".join(f"{points[step][measure]:>9.3f}" for step in steps))
    if options.out:
        print(f"\n{draw(means, options.out / 'curves.png')}")
    last = {init: points[options.steps]["miou_positive"] for init, points in means.items()}
    best = max(last, key=last.__getitem__)
    ratio = last[best] / last["random"] if last.get("random") else None
    medians = {init: statistics.median(values) for init, values in seconds.items()}
    print(
        json.dumps(
            {"curves": means, "best": best, "ratio_best_to_random": ratio, "build_s": medians, "seeds": options.seeds}
        )
    )


if __name__ == "__main__":
    main()
