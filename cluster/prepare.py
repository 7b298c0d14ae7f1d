"""`python -m cluster.prepare INSTANCES.json IMAGES_DIR OUT_DIR [key=value ...]`: shards, made where there is room."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster import job
from cluster.session import session
from sam3dist.config.distill import RunConfig
from sam3dist.config.flat import flat_settings
from sam3dist.data.prepare import prepare
from sam3dist.data.settings import PrepareSettings
from sam3dist.report import write_report

COUNTS = ("rows", "phrases", "positives", "negatives", "instances", "rejected")
EVERY_S = 10.0


def run_prepare(annotations: Path, images: Path, out: Path, settings: PrepareSettings) -> dict[str, Any]:
    """The manifest of the shards, made by one task, since the driver's node may be too small for it.

    The task sees the three paths as the driver does. Raises what the task raised, such as DataError or OSError.
    """
    paths = [path.resolve() for path in (annotations, images, out)]
    # Threads check images; more than one CPU is asked for as far as some node has it, so that it never waits.
    most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    task = _prepare.options(num_cpus=min(settings.threads, most))
    try:
        return ray.get(task.remote(*paths, settings))
    except RayTaskError as error:
        raise error.cause from error


@ray.remote
def _prepare(annotations: Path, images: Path, out: Path, settings: PrepareSettings) -> dict[str, Any]:
    last = time.monotonic()

    def tell(part: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > EVERY_S:
            last = time.monotonic()
            print(f"{part}: {done} of {total}", flush=True)

    return prepare(annotations, images, out, settings, tell)


def work(words: Sequence[str]) -> Path:
    started = time.perf_counter()
    (annotations, images, out), overrides = job.split(words, "INSTANCES.json", "IMAGES_DIR", "OUT_DIR")
    settings = flat_settings(PrepareSettings, overrides, "prepare")
    directory = job.lasting(out, "OUT_DIR")
    with session(RunConfig()):
        manifest = run_prepare(Path(annotations), Path(images), directory, settings)
    counts = {name: manifest[name] for name in COUNTS}
    write_report(directory, {"verb": "prepare", "seconds": time.perf_counter() - started, **counts})
    print(job.numbers(counts))
    return directory


if __name__ == "__main__":
    job.run(work)
