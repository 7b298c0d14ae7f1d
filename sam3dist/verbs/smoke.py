"""`sam3dist smoke`: the whole story on generated scenes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sam3dist.verbs.grammar import Overrides, Verb, run_dir

SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "smoke.yaml"


def arguments(parser: argparse.ArgumentParser) -> None:
    """None: everything has a default."""


def run(options: argparse.Namespace, overrides: Overrides) -> Path:
    from sam3dist.config.load import load_search, to_yaml, with_search_overrides
    from sam3dist.report import write_report
    from sam3dist.verbs.checkpoints import load
    from sam3dist.verbs.compare import show as show_comparison
    from sam3dist.verbs.figures import compared, entries, search_figures
    from sam3dist.verbs.tune import show

    started = time.perf_counter()
    search = with_search_overrides(load_search(SPACE), overrides)
    config = search.base()
    directory = run_dir(config, "smoke", search.name) if config.run.dir else Path("runs/smoke")

    from cluster.search import run_search

    result = run_search(search, directory)
    student = load(result["best"]["checkpoint"])
    teacher = load(config.teacher.source, config.teacher.precision)
    found, panels = compared(student, teacher, result["data"]["val"], config, directory)
    star = {"metrics": found["teacher"], "params_millions": found["sizes"]["teacher"]["params_millions"]}
    drawn = {**search_figures(directory, config.objective.quality, result, star), **panels}
    (directory / "config.yaml").write_text(to_yaml(config))
    report = {"verb": "smoke", "seconds": time.perf_counter() - started, **result, **found}
    write_report(directory, {**report, **entries(directory, drawn)})
    show(report)
    show_comparison(found)
    print(f"Look at {directory / 'report.html'}")
    return directory


VERB = Verb(
    name="smoke",
    summary="the whole story in minutes: scenes, a search of four trials, its best student against the teacher",
    details="Needs no data, no download and no GPU. Generates scenes, searches search_spaces/smoke.yaml with the\n"
    "embedded teacher, compares the best student with it, and reports. Takes the keys of `tune`.",
    examples=("sam3dist smoke", "sam3dist smoke trials=2 optim.steps=40 run.dir=/tmp/smoke"),
    arguments=arguments,
    run=run,
)
