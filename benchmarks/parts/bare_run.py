"""A run in this process: the loop alone, without Ray, on the teacher's answers as they come."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from sam3dist.answers import imitated_features
from sam3dist.data.batches import calibration_batches, endless, evaluation_batches
from sam3dist.data.shards import Shards
from sam3dist.engine.folder import CheckpointFolder
from sam3dist.engine.loop import train
from sam3dist.evaluate import evaluate
from sam3dist.models.segmenter import Pupil, Segmenter
from sam3dist.models.student import build_student
from sam3dist.strategies.protocol import make_strategy
from sam3dist.types import Report

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

Measure = Callable[[nn.Module], dict[str, float]]


def make_pupil(config: DistillConfig, teacher: Segmenter, learn: Shards) -> Pupil:
    """A student as `student.init` says, with fresh projections to the features that it imitates."""
    seed = config.run.seed
    looked_at = calibration_batches(learn, config.data, teacher.image_size, config.student.calibration_images, seed)
    student = build_student(config.student, teacher, seed, looked_at)
    torch.manual_seed(seed)
    return Pupil(student, {name: teacher.feature_widths[name] for name in imitated_features(config.distillation)})


def measured_on(config: DistillConfig, test: Shards, side: int) -> Measure:
    """The metrics of a module on unseen images, at its side in pixels."""

    def measure(module: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(test, config.data, side, max_images=config.eval.max_images)
        return evaluate(module, batches, config.eval.threshold, device="cpu")

    return measure


def bare_run(config: DistillConfig, teacher: Segmenter, pupil: Pupil, learn: Shards, measure: Measure) -> Report:
    """The last report of a whole run. SystemExit where SIGTERM ended it before."""
    taught = config.distillation.beta > 0 or config.distillation.gamma > 0
    side = max(pupil.student.image_size, teacher.image_size)
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
    if report.step < config.optim.steps:
        raise SystemExit(f"stopped at step {report.step} of {config.optim.steps}")
    return report
