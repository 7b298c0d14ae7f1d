"""Training checkpoints: a directory with a student anyone can load, and what it takes to go on training it.

    config.yaml   the run
    state.json    TrainingState: how far it is, and what made it
    student/      the student in the transformers format
    training/     weights with projections and optimizer state, of torch.distributed.checkpoint, for every strategy

saving.py writes them, folder.py keeps them.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from math import inf, isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from sam3dist.data.segments import Segment, after_batches
from sam3dist.engine.clock import TimeSpent
from sam3dist.engine.folder import TRAINING
from sam3dist.errors import CheckpointError
from sam3dist.types import Report

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

FIXED = (
    "teacher.source",
    "teacher.adapter",
    "teacher.geometry_token",
    "student",
    "distillation",
    "objective",
    "data.train",
    "data.val",
    "data.prompts_per_image",
    "data.negative_share",
    "data.horizontal_flip",
    "data.crop_share",
    "data.colour_jitter",
    "eval.threshold",
    "eval.max_images",
    "run.seed",
)
"""Settings of a run for good: what it learns from what, and how that is measured."""
FIXED_IN_THE_END = (
    "teacher.precision",
    "data.images_per_batch",
    "optim.learning_rate",
    "optim.weight_decay",
    "optim.warmup_steps",
    "optim.final_lr_share",
    "optim.clip_grad_norm",
)
"""Settings that may change while there are steps to come, as after a NaN; a finished run is one of the old ones."""


@dataclass(frozen=True)
class TrainingState:
    """How far a run is. Random numbers need no state here: those of a step follow from (seed, step, rank)."""

    seed: int
    strategy: str
    precision: str
    world_size: int
    architecture: str  # of student and projections, see `architecture_of`
    step: int = 0  # updates done
    batches: int = 0  # drawn on each rank
    images: int = 0  # trained on by all ranks together
    segments: tuple[Segment, ...] = ()  # how they came to the ranks so far; empty where the batches are not of shards
    skipped: int = 0  # updates left out because a loss or gradient was not finite
    rejected: dict[str, int] = field(default_factory=dict)  # rows that all ranks set aside, each time, by reason
    epoch: float | None = None  # passes over the training images, where their number is known
    before: dict[str, float] = field(default_factory=dict)  # metrics of the untrained student
    report: Report | None = None  # the last evaluation
    best: dict[str, float] = field(default_factory=dict)  # step and score of the best evaluation
    time: TimeSpent | None = None  # runs of before this was kept lack it
    versions: dict[str, str] = field(default_factory=dict)

    def after_step(self, batches: int, images: int, epoch_images: int | None) -> TrainingState:
        """One update later."""
        images += self.images
        return replace(
            self,
            step=self.step + 1,
            batches=self.batches + batches,
            images=images,
            segments=after_batches(self.segments, batches),
            epoch=None if epoch_images is None else images / epoch_images,
        )

    def after_evaluation(self, report: Report) -> TrainingState:
        """With this report; the first is that of the untrained student."""
        best = self.best
        if not best or report.score > best["score"]:
            best = {"step": report.step, "score": report.score}
        return replace(self, before=self.before or report.metrics, report=report, best=best)


def read_state(directory: Path) -> TrainingState:
    """What state.json says. CheckpointError where the directory is no checkpoint of a run."""
    content = _read_json(directory / "state.json")
    try:
        return _restored(content)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory / 'state.json'}: written by another version of sam3dist ({error})."
        ) from error


def require_training_state(directory: Path) -> None:
    """Raise CheckpointError where a checkpoint holds a student, but not what it takes to go on training it."""
    if not (directory / TRAINING).is_dir():
        raise CheckpointError(
            f"{directory}: no training checkpoint; expected state.json and training/ in it, which a search "
            "keeps for its front only. To start from a student alone, name it as the teacher of a new run."
        )


def require_same_run(directory: Path, state: TrainingState, fresh: TrainingState) -> None:
    """Raise CheckpointError where the checkpoint's training state cannot go on as the run `fresh`."""
    if state.architecture != fresh.architecture:
        raise CheckpointError(
            f"{directory}: its student or projections have other shapes than those of this run; resume with the "
            "student.* and distillation.features it was trained with, see its config.yaml."
        )


def require_same_settings(directory: Path, config: DistillConfig, finished: bool) -> None:
    """Raise CheckpointError where the checkpoint in `directory` was trained with settings other than `config`.

    Names the first of FIXED that differs, and, where the run is `finished` and so would give its result again, of
    FIXED_IN_THE_END. All else, such as the number of steps or of workers, may change.
    """
    file = directory / "config.yaml"
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file}: unreadable ({error}); use an older checkpoint.") from error
    fresh = as_plain(config)
    for key in (*FIXED, *FIXED_IN_THE_END) if finished else FIXED:
        before, now = _at(saved, key), _at(fresh, key)
        if before != now:
            while isinstance(now, dict) and isinstance(before, dict):
                name = next(name for name in (*now, *before) if before.get(name) != now.get(name))
                key, before, now = f"{key}.{name}", before.get(name), now.get(name)
            raise CheckpointError(
                f"{key}={now}: {directory} was trained with {key}={before}; choose another run.dir, or set it back."
            )


def architecture_of(pupil: nn.Module) -> str:
    """A short digest of the names and shapes of all weights; call it before a strategy shards them."""
    shapes = [(name, tuple(value.shape)) for name, value in pupil.state_dict().items()]
    return hashlib.sha256(repr(sorted(shapes)).encode()).hexdigest()[:16]


def as_plain(config: Any) -> Any:
    """Dicts, lists and scalars for YAML, from pydantic models or from namespaces alike."""
    if hasattr(config, "model_dump"):
        return as_plain(config.model_dump(mode="json"))
    if isinstance(config, Mapping):
        return {key: as_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_plain(value) for value in config]
    return as_plain(vars(config)) if hasattr(config, "__dict__") else config


def versions() -> dict[str, str]:
    """What the numbers of a run may depend on."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("sam3dist", "transformers", "deepspeed", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _restored(content: dict[str, Any]) -> TrainingState:
    """The state from JSON, where null stands for a metric that is undefined, or for a score below all others."""
    content["before"] = _defined(content["before"], nan)
    content["best"] = _defined(content["best"], -inf)
    content["segments"] = tuple(Segment(**segment) for segment in content.get("segments", ()))
    if content["report"] is not None:
        report = _defined(content["report"], -inf)
        values = {name: _defined(report[name], nan) for name in ("metrics", "before")}
        content["report"] = Report(**{**report, **values, "checkpoint": None})
    if content.get("time") is not None:
        content["time"] = TimeSpent(**content["time"])
    return TrainingState(**content)


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _defined(values: Mapping[str, Any], missing: float) -> dict[str, Any]:
    return {name: missing if value is None else value for name, value in values.items()}


def json_safe(value: Any) -> Any:
    """The same tree with None for numbers that JSON cannot hold: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: unreadable ({error}); use an older checkpoint.") from error
