"""`sam3dist smoke`: the whole story on generated scenes."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3dist.verbs.grammar import Overrides, Verb

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.config.search import SearchConfig

SPACE = Path(__file__).resolve().parents[1] / "config" / "spaces" / "smoke.yaml"
"""Inside the package, so that it is installed; search_spaces/smoke.yaml is a link to it."""
SCENES = {"train": 128, "val": 48}
SCENE_SIDE = 160
"""Pixels; the embedded teacher sees 96 of them, and masks are compared at 160."""

OURS = (
    *("answers", "trials", "tune", "optuna.journal", "search.yaml", "config.yaml", "figures", "recommended"),
    *("finalists", "tune-finalists"),
    *("report.html", "report.json"),
)
"""What a run writes into its directory besides the scenes; the report last, since it tells that the run is over."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """None: everything has a default."""


def run(options: argparse.Namespace, overrides: Overrides) -> Path | int:
    from sam3dist.config.load import load_search, with_search_overrides
    from sam3dist.figures import entries, search_figures
    from sam3dist.objective import reported_size
    from sam3dist.report import write_report
    from sam3dist.verbs.checkpoints import load
    from sam3dist.verbs.compare import compared
    from sam3dist.verbs.compare import show as show_comparison
    from sam3dist.verbs.tune import nothing_found, show

    started = time.perf_counter()
    search = with_search_overrides(load_search(SPACE), {"teacher.mode": "stored", **overrides})
    directory = Path(search.base().run.dir or "runs/smoke").resolve()
    asked = search.base().teacher
    teacher = load(asked.source, asked.precision, asked.geometry_token)
    made = {"teacher.answers": str(directory / "answers"), **overrides, **scenes(search.base(), directory / "scenes")}
    search = with_search_overrides(search, made)
    clear_finished(directory)
    config = search.base()

    from cluster.search import run_search
    from cluster.session import session
    from cluster.stopping import leave_on_sigterm

    leave_on_sigterm()
    with session(config.run):
        taught = teach(search)
        result = run_search(search, directory)
    if not result["front"]:
        seconds = time.perf_counter() - started
        return nothing_found(directory, {"verb": "smoke", "seconds": seconds, **result, "taught": taught})
    best = result["best"]
    found, panels = compared(load(best["checkpoint"]), teacher, result["data"]["val"], config, directory)
    star = {"metrics": found["teacher"], "size": reported_size(found["sizes"]["teacher"], result["objective"])}
    drawn = {**search_figures(directory, config.objective.quality, result, star), **panels}
    seconds = time.perf_counter() - started
    report = {"verb": "smoke", "seconds": seconds, **result, "before": best["before"], **found, "taught": taught}
    show(write_report(directory, {**report, **entries(directory, drawn)}))
    print(f"Trial {best['trial']} has the best score of quality and size; it is the student below.")
    show_comparison(found, best["before"])
    print(f"report    {directory / 'report.html'}\nstudent   {best['checkpoint']}")
    return directory


def teach(search: SearchConfig) -> dict[str, Any] | None:
    """What the teaching says of itself; None where the trials ask the teacher themselves (teacher.mode=online)."""
    from cluster.search import weighs_features
    from cluster.teach import run_teaching
    from sam3dist.config.load import with_overrides
    from sam3dist.verbs.console import progress

    if search.base().teacher.mode == "online":
        return None
    config = with_overrides(search.base(), {"strategy.num_workers": search.max_concurrent or 1})
    with progress("asking the teacher, row") as update:
        return run_teaching(config, update, weighs_features(search, config))


def clear_finished(directory: Path) -> None:
    """Remove what a finished smoke run left, so that this one is real. An interrupted one goes on; scenes are kept."""
    report = directory / "report.json"
    try:
        ended = json.loads(report.read_text()).get("verb") == "smoke"
    except (OSError, ValueError, AttributeError):
        return
    for name in OURS if ended else ():
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def scenes(config: DistillConfig, folder: Path) -> Overrides:
    """Overrides that name shards of generated scenes, unless the configuration names shards; ConfigError for one."""
    from cluster.trainer import named_data
    from sam3dist.data.samples.write import scene_shards
    from sam3dist.verbs.console import progress

    made: Overrides = {}
    if named_data(config.data) is None:
        for seed, split in enumerate(SCENES):
            with progress(f"generating {split} scenes") as update:
                made[f"data.{split}"] = str(scene_shards(folder, SCENES[split], seed, SCENE_SIDE, update))
    return made


VERB = Verb(
    name="smoke",
    summary="the whole story in minutes: scenes, a search of four trials, its best student against the teacher",
    details="Needs no data, no download and no GPU. Generates scenes, asks the embedded teacher about them once,\n"
    "searches search_spaces/smoke.yaml on its answers, compares the best student with it, and reports. Takes the\n"
    "keys of `tune`. Each run begins anew in runs/smoke; one that was interrupted goes on.",
    examples=("sam3dist smoke", "sam3dist smoke trials=2 optim.steps=40 run.dir=/tmp/smoke"),
    arguments=arguments,
    run=run,
)
