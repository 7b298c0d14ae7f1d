"""`sam3dist compare`: a student beside its teacher."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3dist.config.words import EVAL_TAKES
from sam3dist.verbs.grammar import Overrides, Verb, run_dir, settings

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Segmenter

TAKES = (*EVAL_TAKES, "run.figures")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help="a run or checkpoint directory")
    parser.add_argument("teacher", metavar="TEACHER", help="embedded, a hub id, a directory, or Meta's sam3.pt")
    parser.add_argument("shards", metavar="SHARDS", help="a directory that `sam3dist prepare` wrote")


def run(options: argparse.Namespace, overrides: Overrides) -> Path:
    from sam3dist.config.load import to_yaml
    from sam3dist.data.shards import open_shards
    from sam3dist.figures import entries
    from sam3dist.models.source import resolve
    from sam3dist.report import write_report
    from sam3dist.verbs.checkpoints import load

    started = time.perf_counter()
    config = settings("compare", overrides, TAKES)
    open_shards(options.shards)  # a wrong path shows before minutes of loading
    student = load(options.student)
    teacher = load(options.teacher, config.teacher.precision, config.teacher.geometry_token)
    directory = run_dir(config, "compare", options.student, options.teacher, options.shards)
    found, drawn = compared(student, teacher, options.shards, config, directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    write_report(
        directory,
        {
            "verb": "compare",
            "seconds": time.perf_counter() - started,
            "checkpoints": {"student": resolve(options.student), "teacher": resolve(options.teacher)},
            "shards": str(options.shards),
            **found,
            **entries(directory, drawn),
        },
    )
    show(found)
    for path, caption in drawn.items():
        print(f"{path}  {caption}")
    return directory


def compared(
    student: Segmenter, teacher: Segmenter, shards_dir: str, config: DistillConfig, run_dir: Path
) -> tuple[dict[str, Any], dict[Path, str]]:
    """The report entries of a comparison, and its drawn figures with their captions."""
    from sam3dist.compare import choose, compare, draw, sizes
    from sam3dist.data.shards import num_phrases, open_shards
    from sam3dist.verbs.console import progress

    shards = open_shards(shards_dir)
    total = num_phrases(shards, config.eval.max_images)
    done = {"student": 0, "teacher": 0}
    with progress("answers of student and teacher") as update:

        def note(name: str, pairs: int) -> None:
            done[name] = pairs
            update(sum(done.values()), 2 * total)

        found = compare(student, teacher, shards, config.data, config.eval, note)
    picks = choose(found.pairs, config.run.figures)
    drawn = draw(picks, student, teacher, shards, config.data, config.eval.threshold, run_dir / "figures")
    told = {
        "student": found.student,
        "teacher": found.teacher,
        "student_over_teacher": found.student_over_teacher,
        "rejected": found.rejected,
        **sizes(student, teacher),
    }
    return told, drawn


def show(found: Mapping[str, Any], before: Mapping[str, float] | None = None) -> None:
    """Print the numbers side by side, of the untrained student too if given, and what the student keeps."""
    from sam3dist.verbs.console import table

    columns = {"untrained": before or {}, "student": found["student"], "teacher": found["teacher"]}
    size = {name: found["sizes"].get(name, {}).get("params_millions") for name in columns}
    shown = list(columns) if before else ["student", "teacher"]
    rows = [(metric, *(columns[name].get(metric) for name in shown)) for metric in found["student"]]
    table(("metric", *shown), [*rows, ("parameters (millions)", *(size[name] for name in shown))])
    share = found["student_over_teacher"]
    kept = "an unknown share" if isnan(share) else f"{100 * share:.1f} %"
    print(f"The student has {kept} of the teacher's mIoU on positives at 1/{found['times_smaller']:.1f} of its size.")


VERB = Verb(
    name="compare",
    summary="measure a student and its teacher on the same pairs, with pictures of where they differ",
    details="The pictures show, in turn, a pair drawn at random, the pair where the teacher leads most, and a phrase\n"
    f"that names nothing. Keys: {', '.join(TAKES[:5])},\n{', '.join(TAKES[5:])}.",
    examples=(
        "sam3dist compare runs/train-small facebook/sam3 shards/val",
        "sam3dist compare runs/smoke embedded shards/val run.figures=12 eval.max_images=500",
    ),
    arguments=arguments,
    run=run,
)
