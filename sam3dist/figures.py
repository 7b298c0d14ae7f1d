"""The figures of a run's report: what is drawn for which verb, and the entries by which a report names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sam3dist.compare import choose, draw, some_pairs
from sam3dist.data.shards import open_shards
from sam3dist.engine.loggers import read_history
from sam3dist.models.size import model_size
from sam3dist.models.teacher import load_teacher, teacher_config
from sam3dist.objective import size_title
from sam3dist.plots import curves, pareto_plot, trial_curves

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

CURVES = "Training loss by its terms, and quality on the validation data from the untrained student on."
TRIALS = "Quality of every trial on the validation data, from the untrained student on; a cross where one was stopped."
PARETO = "Every trial by size and quality. The front is what no other trial beats in both."
SLOW_MILLIONS = 50
"""A larger teacher takes minutes for a few pictures on a CPU, so a training run leaves them to `compare`."""


def entries(run_dir: Path, drawn: Mapping[Path, str]) -> dict[str, Any]:
    """`figures` and `captions` of a report, from files in the run directory and what they show."""
    names = {str(path.relative_to(run_dir)): caption for path, caption in drawn.items()}
    return {"figures": list(names), "captions": names}


def training_figures(run_dir: Path, config: DistillConfig, result: Mapping[str, Any]) -> dict[Path, str]:
    """The curves, and, where that is quick, `run.figures` pairs answered by the student and its teacher.

    result: what `run_training` gives.
    """
    folder = run_dir / "figures"
    drawn = {curves(read_history(run_dir / "history.jsonl"), path=folder / "curves.png"): CURVES}
    if not config.run.figures:
        return drawn
    if config.student.like is not None:  # the teacher may be of a kind that cannot be asked here
        return drawn
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and model_size(teacher_config(config.teacher.source)).params_millions > SLOW_MILLIONS:
        return drawn
    shards = open_shards(result["data"]["val"])
    picks = choose(some_pairs(shards, 4 * config.run.figures), config.run.figures)
    teacher = load_teacher(config.teacher.source, device, config.teacher.precision, config.teacher.geometry_token)
    student = load_teacher(result["checkpoint"], device, "fp32")
    return drawn | draw(picks, student, teacher, shards, config.data, config.eval.threshold, folder)


def search_figures(
    run_dir: Path, quality: str, result: Mapping[str, Any], teacher: Mapping[str, Any] | None = None
) -> dict[Path, str]:
    """The trials by size and quality, their quality over the steps, and the curves of the best.

    result: what `run_search` gives. teacher: its "metrics" and "size", what the trials are held against.
    """
    trials, folder, size = result["trials"], run_dir / "figures", size_title(result["objective"])
    front = [point["trial"] for point in result["front"]]
    path = folder / "pareto.png"
    drawn = {pareto_plot(trials, front, quality=quality, path=path, teacher=teacher, size=size): PARETO}
    histories = {t["trial"]: read_history(run_dir / "trials" / t["trial"] / "history.jsonl") for t in trials}
    if any(histories.values()):
        best = result["best"]["trial"]
        drawn[trial_curves(trials, histories, quality=quality, path=folder / "trials.png", teacher=teacher)] = TRIALS
        drawn[curves(histories[best], path=folder / "curves.png", title=f"Trial {best}, the best by score")] = CURVES
    return drawn
