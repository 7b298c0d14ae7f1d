"""`python -m cluster.tune SPACE.yaml [dotted.key=value ...]`: a search as a Ray job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cluster import job
from cluster.search import run_search
from sam3dist.config.load import load_search, with_search_overrides
from sam3dist.config.words import run_dir
from sam3dist.figures import entries, search_figures
from sam3dist.report import write_report


def work(words: Sequence[str]) -> Path:
    started = time.perf_counter()
    (space,), overrides = job.split(words, "SPACE.yaml")
    search = with_search_overrides(load_search(space), overrides)
    directory = job.lasting(str(run_dir(search.base(), "tune", search.name)))
    result = run_search(search, directory)
    report = {"verb": "tune", "seconds": time.perf_counter() - started, **result}
    if not result["front"]:
        told = write_report(directory, {"status": "empty", **report})
        print(f"sam3dist: {told['why_empty']}", flush=True)
        raise SystemExit(1)
    report = write_report(directory, report)  # now, so that nothing is lost if drawing fails
    drawn = search_figures(directory, search.base().objective.quality, result)
    write_report(directory, {**report, **entries(directory, drawn)})
    print("  ".join(f"{count} {state}" for state, count in result["states"].items()))
    for point in result["front"]:
        print(f"front  trial {point['trial']}  {job.numbers(point)}  {point['checkpoint']}")
    return directory


if __name__ == "__main__":
    job.run(work)
