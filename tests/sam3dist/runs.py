"""Tiny runs for the tests of engine and strategies: 40k weights, seconds on one core."""

import json
from collections.abc import Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam3dist.config.distill import DistillConfig, StudentSpec
from sam3dist.engine.folder import CheckpointFolder
from sam3dist.engine.loop import train
from sam3dist.evaluate import evaluate
from sam3dist.models.segmenter import Pupil, Segmenter, segment
from sam3dist.models.student import build_student
from sam3dist.strategies.protocol import make_strategy
from sam3dist.types import PromptBatch, Report
from tests.conftest import random_batch

SPEC = {"detr_width": 16, "vision_depth": 1, "init": "copy"}  # the same bits, however many threads compute


def settings(**sections: dict[str, Any]) -> DistillConfig:
    """A run of 6 steps in float32 that evaluates and saves at the end only; sections are updated, not replaced."""
    base: dict[str, dict[str, Any]] = {
        "student": SPEC,
        "distillation": {},
        "optim": {"steps": 6, "warmup_steps": 2, "learning_rate": 1e-3},
        "eval": {"every_steps": 100},
        "checkpoint": {"every_steps": 100},
        "strategy": {"kind": "ddp", "precision": "fp32"},
        "run": {"loggers": (), "log_every_steps": 1},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return DistillConfig.model_validate(base)


def pupil_of(teacher: Segmenter, config: DistillConfig) -> Pupil:
    """A student of `config.student`, without dropout so that a batch gives the same numbers however it is split."""
    student = build_student(StudentSpec.model_validate(config.student.model_dump()), teacher, 1, islice(stream(), 2))
    for part in student.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    torch.manual_seed(2)  # for the projections
    widths = {name: teacher.feature_widths[name] for name in config.distillation.features}
    return Pupil(student, widths if config.distillation.gamma > 0 else {})


def stream(start: int = 0, images: int = 2, prompts: int = 3) -> Iterator[PromptBatch]:
    """Endless batches, the same ones each time; as many instances in each."""
    for seed in count(start):
        yield random_batch(images, prompts, seed=seed)


def quality(module: nn.Module) -> dict[str, float]:
    """The metrics on one fixed batch."""
    return evaluate(module, [random_batch(2, 2, seed=1000)], 0.5, device="cpu")


def newest_checkpoint(parent: Path) -> Path | None:
    """The checkpoint that the manifest of this directory calls the latest; None without a manifest."""
    manifest = parent / "manifest.json"
    return parent / json.loads(manifest.read_text())["latest"] if manifest.is_file() else None


def assert_same_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> None:
    """Each weight differs by less than a fiftieth of what training moved its tensor by at most.

    Biases of keys are left out: softmax ignores them, so their gradient is rounding noise, which Adam amplifies.
    """
    assert set(found) == set(expected)
    for name, value in expected.items():
        if not name.endswith("k_proj.bias"):
            moved = float((value - start[name]).abs().max())
            torch.testing.assert_close(found[name], value, rtol=0, atol=0.02 * moved + 1e-7, msg=f"{name}, {moved}")


class Published(list[Report]):
    """What a run told its surroundings."""

    def __call__(self, report: Report) -> None:
        self.append(report)


def run(config: DistillConfig, teacher: Segmenter, directory: Path, **changes: Any) -> tuple[Report, Pupil]:
    """Train a fresh pupil; `changes` replaces arguments of `train`."""
    pupil = changes.pop("pupil", None) or pupil_of(teacher, config)
    learns = config.distillation.beta > 0 or config.distillation.gamma > 0
    arguments = {
        "teacher": teacher if learns else None,
        "strategy": make_strategy(config),
        "batches": stream(),
        "evaluate": quality,
        "publish": Published(),
        "folder": CheckpointFolder(directory),
        **changes,
    }
    return train(config, pupil=pupil, **arguments), pupil


def simple_loss(module: nn.Module, batch: PromptBatch | None = None) -> Tensor:
    """Reaches every trainable weight."""
    outputs = segment(module, batch or random_batch(1, 2), auxiliary=True)
    features = sum(feature.float().square().mean() for feature in outputs.features.values())
    return features + sum(
        tensor.float().square().mean()
        for tensor in (
            outputs.mask_logits,
            outputs.query_logits,
            outputs.boxes,
            outputs.presence_logits,
            outputs.semantic_logits,
        )
    )


def batches_list(number: int, **changes: Any) -> list[PromptBatch]:
    return list(islice(stream(**changes), number))
