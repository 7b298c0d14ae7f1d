"""`sam3dist teach`: ask the teacher once, for all runs to come."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3dist.verbs.grammar import Overrides, Verb, run_dir


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "preset", metavar="PRESET", help="what will train on the answers: smoke, base, lite, ... or a YAML file"
    )


def run(options: argparse.Namespace, overrides: Overrides) -> Path:
    from sam3dist.config.load import load_preset, to_yaml, with_overrides
    from sam3dist.report import write_report
    from sam3dist.verbs.console import progress

    started = time.perf_counter()
    config = with_overrides(load_preset(options.preset), overrides)
    directory = run_dir(config, "teach", config.name)

    from cluster.stopping import leave_on_sigterm
    from cluster.teach import run_teaching

    leave_on_sigterm()
    with progress("rows answered") as update:
        result = run_teaching(config, update)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    show(write_report(directory, {"verb": "teach", "seconds": time.perf_counter() - started, **result}))
    return directory


def show(report: Mapping[str, Any]) -> None:
    """Print what a person wants to know of a store."""
    from sam3dist.verbs.console import table

    fidelity = report["fidelity"]
    rows = [
        ("image-phrase pairs", report["pairs"]),
        ("masks", report["masks"]),
        ("bytes per pair, without features", round(report["answer_bytes_per_pair"])),
        ("bytes per image, with features", round(report["bytes_per_image"])),
        ("IoU of stored masks with the teacher's, mean", fidelity["mask_iou"]),
        ("KL of stored scores from the teacher's, mean", fidelity["score_kl"]),
        ("shards", report["shards"]),
        ("shards computed now", report["recomputed"]),
    ]
    table(("stored answers", ""), rows)
    if report["rejected"]:
        table(("set aside because of", "rows"), list(report["rejected"].items()))
    print(f"store  {report['store']}\nRuns read it with teacher.mode=stored.")


VERB = Verb(
    name="teach",
    summary="ask the teacher once about all training data, and store its answers compactly",
    details="Runs on Ray: strategy.num_workers actors, a shard each at a time, on GPUs with strategy.use_gpu=true.\n"
    "Writes to teacher.answers, by default `answers` inside data.train: presence, scores, boxes and masks of the\n"
    "confident queries, the semantic map, and, where distillation.gamma is above 0, distillation.features. Killed at\n"
    "any point, the same command goes on. Train and tune read the store with teacher.mode=stored.\n"
    "teacher.source may also be a SAM (1), which is prompted with the boxes of the labels, or FILE.py:NAME, a\n"
    "teacher of your own (examples/voc_teacher.py). SAM has no features to store: distillation.gamma=0.",
    examples=(
        "sam3dist teach small data.train=shards/train",
        "sam3dist teach small data.train=D strategy.use_gpu=true strategy.num_workers=8 distillation.gamma=0",
        "sam3dist teach small data.train=D distillation.gamma=0 teacher.source=facebook/sam-vit-base",
    ),
    arguments=arguments,
    run=run,
)
