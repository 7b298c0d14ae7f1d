"""`python -m cluster.train PRESET [dotted.key=value ...]`: one training run as a Ray job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cluster import job
from cluster.trainer import run_training
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.config.words import run_dir
from sam3dist.figures import entries, training_figures
from sam3dist.report import write_report


def work(words: Sequence[str]) -> Path:
    started = time.perf_counter()
    (preset,), overrides = job.split(words, "PRESET")
    config = with_overrides(load_preset(preset), overrides)
    directory = job.lasting(str(run_dir(config, "train", config.name)))
    result = run_training(config, directory)
    status = "ok" if result["complete"] else "stopped"
    report = {"verb": "train", "status": status, "seconds": time.perf_counter() - started, **result}
    write_report(directory, report)  # now, so that nothing is lost if drawing fails
    write_report(directory, {**report, **entries(directory, training_figures(directory, config, result))})
    print(job.numbers(result["metrics"]))
    if not result["complete"]:
        print(f"stopped at step {result['step']} of {config.optim.steps}; the same command goes on from there")
        raise SystemExit(143)
    return directory


if __name__ == "__main__":
    job.run(work)
