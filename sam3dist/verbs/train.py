"""`sam3dist train`: one student."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from sam3dist.verbs.grammar import Overrides, Verb, run_dir


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="smoke, base, lite, small, medium, mobile, or a YAML file")


def run(options: argparse.Namespace, overrides: Overrides) -> Path | int:
    from sam3dist.config.load import load_preset, with_overrides
    from sam3dist.figures import entries, training_figures
    from sam3dist.report import write_report
    from sam3dist.verbs.console import table

    started = time.perf_counter()
    config = with_overrides(load_preset(options.preset), overrides)
    directory = run_dir(config, "train", config.name)

    from cluster.stopping import leave_on_sigterm
    from cluster.trainer import run_training

    leave_on_sigterm()
    result = run_training(config, directory)
    status = "ok" if result["complete"] else "stopped"
    report = {"verb": "train", "status": status, "seconds": time.perf_counter() - started, **result}
    write_report(directory, report)  # now, so that nothing is lost if drawing fails
    report = write_report(directory, {**report, **entries(directory, training_figures(directory, config, result))})
    before, after = report["before"], report["metrics"]
    table(("metric", "untrained", "trained"), [(name, before.get(name), value) for name, value in after.items()])
    print(f"parameters  {report['params_millions']:.4g} million\ncheckpoint  {report['checkpoint']}")
    if not report["complete"]:
        steps = f"step {report['step']} of {config.optim.steps}"
        print(f"sam3dist: stopped at {steps}; the same command goes on from there.", file=sys.stderr)
        print(directory)
        return 143  # as for any other program that SIGTERM has ended
    return directory


VERB = Verb(
    name="train",
    summary="distil one student from its teacher",
    details="Runs on Ray: on this machine, on the cluster of run.address, or inside `ray job submit`. The same\n"
    "command again resumes from the last checkpoint. Without data.train and data.val it trains on generated scenes.",
    examples=(
        "sam3dist train small data.train=shards/train data.val=shards/val",
        "sam3dist train smoke optim.steps=200",
        "sam3dist train lite data.train=D data.val=V strategy.kind=fsdp strategy.num_workers=8",
        "sam3dist train mine.yaml distillation.temperature=6 student.vision_width=384 run.dir=runs/narrow",
    ),
    arguments=arguments,
    run=run,
)
