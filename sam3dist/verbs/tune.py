"""`sam3dist tune`: a search for the Pareto front."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3dist.verbs.grammar import Overrides, Verb, run_dir


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("space", metavar="SPACE.yaml", help="a search space, such as search_spaces/quick.yaml")


def run(options: argparse.Namespace, overrides: Overrides) -> Path | int:
    from sam3dist.config.load import load_search, with_search_overrides
    from sam3dist.figures import entries, search_figures
    from sam3dist.report import write_report

    started = time.perf_counter()
    search = with_search_overrides(load_search(options.space), overrides)
    directory = run_dir(search.base(), "tune", search.name)

    from cluster.search import run_search
    from cluster.stopping import leave_on_sigterm

    leave_on_sigterm()
    result = run_search(search, directory)
    report = {"verb": "tune", "seconds": time.perf_counter() - started, **result}
    if not result["front"]:
        return nothing_found(directory, report)
    report = write_report(directory, report)  # now, so that nothing is lost if drawing fails
    drawn = search_figures(directory, search.base().objective.quality, result)
    report = write_report(directory, {**report, **entries(directory, drawn)})
    show(report)
    return directory


def nothing_found(directory: Path, report: Mapping[str, Any]) -> int:
    """The exit code of a search whose front is empty, after its report is written and has said why."""
    from sam3dist.report import write_report

    report = write_report(directory, {"status": "empty", **report})
    show(report)
    print(f"sam3dist: {report['why_empty']}", file=sys.stderr)
    print(directory)
    return 1


def show(report: Mapping[str, Any]) -> None:
    """Print every trial, best first, the front, smallest first, and whom to train in full."""
    from sam3dist.knobs import short_names
    from sam3dist.tables import commands, finalists, recommended
    from sam3dist.verbs.console import table

    trials: Sequence[Mapping[str, Any]] = report["trials"]
    searched = report["objective"]["quality"]
    on_front = {point["trial"] for point in report["front"]}
    keys = sorted({key for trial in trials for key in trial["config"]})

    def quality(trial: Mapping[str, Any]) -> float | None:
        return (trial.get("metrics") or {}).get(searched)

    rows = [
        (
            ("* " if trial["trial"] in on_front else "  ") + str(trial["trial"]),
            str(trial["state"]).lower(),
            quality(trial),
            trial.get("params_millions"),
            *(trial["config"].get(key) for key in keys),
        )
        for trial in sorted(trials, key=lambda trial: -(quality(trial) or 0))
    ]
    names = short_names(keys).values()
    table(("trial", "state", searched, "params (M)", *names), rows, "Trials (* on the Pareto front)")
    front = [(p["trial"], p[searched], p["params_millions"], str(p["checkpoint"])) for p in report["front"]]
    table(("trial", searched, "params (M)", "checkpoint"), front, "Pareto front, smallest first")
    for more in (finalists(report), recommended(report)):
        if more is not None:
            table(more.columns, more.rows, more.title)
    for trial, command in commands(report).items():
        print(f"trial {trial} in full: {command}")


VERB = Verb(
    name="tune",
    summary="search loss knobs and student shapes together for the Pareto front of quality and size",
    details="A key of the search itself (trials, sampler, max_concurrent, asha.enabled, space.KEY) changes it;\n"
    "any other key is set on every trial. The same command again goes on where it stopped; so does run.resume=RUN.\n"
    "In the end every trial keeps its student, and those on the front also what training on would need.\n"
    "Watch it: optuna-dashboard on the journal in the run directory, tensorboard on the run directory.",
    examples=(
        "sam3dist tune search_spaces/quick.yaml data.train=shards/train data.val=shards/val",
        "sam3dist tune search_spaces/full.yaml data.train=D data.val=V trials=100 max_concurrent=16",
        "sam3dist tune search_spaces/smoke.yaml trials=2 optim.steps=40",
        "sam3dist tune search_spaces/mobile.yaml data.train=D data.val=V finalists.count=3 finalists.steps=40000",
        "sam3dist tune search_spaces/full.yaml data.train=D data.val=V run.resume=runs/tune-full",
        "sam3dist tune mine.yaml 'space.distillation.temperature={uniform: [1, 4]}' sampler=gp",
    ),
    arguments=arguments,
    run=run,
)
