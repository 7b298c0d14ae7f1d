"""The figures of a run's report, as the entries `figures` (paths in the run directory) and `captions` of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Segmenter

CURVES = "Training loss by its terms, and quality on the validation data from the untrained student on."
PARETO = "Every trial by size and quality. The front is what no other trial beats in both."
SLOW_MILLIONS = 50
"""A larger teacher takes minutes for a few pictures on a CPU, so a training run leaves them to `compare`."""


def entries(run_dir: Path, drawn: Mapping[Path, str]) -> dict[str, Any]:
    """`figures` and `captions` of a report, from files in the run directory and what they show."""
    names = {str(path.relative_to(run_dir)): caption for path, caption in drawn.items()}
    return {"figures": list(names), "captions": names}


def training_figures(run_dir: Path, config: DistillConfig, result: Mapping[str, Any]) -> dict[Path, str]:
    """The curves, and, where that is quick, a few pairs answered by the student and its teacher."""
    from sam3dist.engine.loggers import read_history
    from sam3dist.plots import curves

    folder = run_dir / "figures"
    drawn = {curves(read_history(run_dir / "history.jsonl"), path=folder / "curves.png"): CURVES}
    if config.run.figures:
        from sam3dist.compare import choose, draw, some_pairs
        from sam3dist.data.shards import open_shards
        from sam3dist.models.size import model_size
        from sam3dist.verbs.checkpoints import load

        teacher = load(config.teacher.source, config.teacher.precision)
        if teacher.device.type == "cpu" and model_size(teacher.net.config).params_millions > SLOW_MILLIONS:
            return drawn
        shards = open_shards(result["data"]["val"])
        picks = choose(some_pairs(shards, 4 * config.run.figures), config.run.figures)
        student = load(result["checkpoint"])
        drawn |= draw(picks, student, teacher, shards, config.data, config.eval.threshold, folder)
    return drawn


def search_figures(
    run_dir: Path, quality: str, result: Mapping[str, Any], teacher: Mapping[str, Any] | None = None
) -> dict[Path, str]:
    """The trials by size and quality; with `teacher` ("metrics", "params_millions") as what they are held against."""
    from sam3dist.plots import pareto_plot

    front = [point["trial"] for point in result["front"]]
    path = run_dir / "figures" / "pareto.png"
    return {pareto_plot(result["trials"], front, quality=quality, path=path, teacher=teacher): PARETO}


def compared(
    student: Segmenter, teacher: Segmenter, shards_dir: str, config: DistillConfig, run_dir: Path
) -> tuple[dict[str, Any], dict[Path, str]]:
    """The report entries of a comparison, and its drawn figures with their captions."""
    from sam3dist.compare import choose, compare, draw, sizes
    from sam3dist.data.shards import open_shards
    from sam3dist.verbs.console import progress

    shards = open_shards(shards_dir)
    # With max_images nobody knows beforehand how many phrases those have.
    total = None if config.eval.max_images else int(shards.manifest["phrases"])
    done = {"student": 0, "teacher": 0}
    with progress("pairs answered by both") as update:

        def note(name: str, pairs: int) -> None:
            done[name] = pairs
            update(sum(done.values()), 2 * total if total else 2 * max(done.values()))

        found = compare(student, teacher, shards, config.data, config.eval, note)
    picks = choose(found.pairs, config.run.figures)
    drawn = draw(picks, student, teacher, shards, config.data, config.eval.threshold, run_dir / "figures")
    entries = {
        "student": found.student,
        "teacher": found.teacher,
        "student_over_teacher": found.student_over_teacher,
        **sizes(student, teacher),
    }
    return entries, drawn
