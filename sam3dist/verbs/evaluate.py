"""`sam3dist eval`: the quality of any student or teacher."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from sam3dist.config.words import EVAL_TAKES
from sam3dist.verbs.grammar import Overrides, Verb, run_dir, settings

COUNTS = ("num_pairs", "num_positive", "num_negative")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run or checkpoint directory, embedded, or a hub id")
    parser.add_argument("shards", metavar="SHARDS", help="a directory that `sam3dist prepare` wrote")


def run(options: argparse.Namespace, overrides: Overrides) -> Path:
    from sam3dist.config.load import to_yaml
    from sam3dist.data.batches import evaluation_batches
    from sam3dist.data.rejects import Rejects
    from sam3dist.data.shards import num_phrases, open_shards
    from sam3dist.evaluate import evaluate
    from sam3dist.models.size import model_size
    from sam3dist.models.source import resolve
    from sam3dist.report import write_report
    from sam3dist.verbs.checkpoints import load
    from sam3dist.verbs.console import progress, table

    started = time.perf_counter()
    config = settings("eval", overrides, EVAL_TAKES)
    shards = open_shards(options.shards)
    rejects = Rejects()
    model = load(options.checkpoint, config.teacher.precision, config.teacher.geometry_token)
    loaded = time.perf_counter()
    batches = evaluation_batches(
        shards,
        config.data,
        model.image_size,
        max_images=config.eval.max_images,
        images_per_batch=config.eval.images_per_batch,
        prompts_per_batch=config.eval.prompts_per_batch,
        rejects=rejects,
    )
    total = num_phrases(shards, config.eval.max_images)
    with progress("pairs") as update:
        metrics = evaluate(
            model,
            batches,
            config.eval.threshold,
            device=model.device,
            progress=lambda pairs: update(pairs, total),
        )
    seconds = time.perf_counter() - loaded
    size = model_size(model.net.config)
    directory = run_dir(config, "eval", options.checkpoint, options.shards)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    report: dict[str, Any] = {
        "verb": "eval",
        "seconds": time.perf_counter() - started,
        "checkpoint": resolve(options.checkpoint),
        "shards": str(options.shards),
        "content_sha256": shards.content_hash,
        "metrics": metrics,
        "rejected": dict(rejects.by_reason),
        **{name: metrics[name] for name in COUNTS},
        "params_millions": size.params_millions,
        "megabytes": size.megabytes,
        "pairs_per_second": metrics["num_pairs"] / seconds,
    }
    write_report(directory, report)
    shown = [(name, value) for name, value in metrics.items()]
    table(("metric", options.checkpoint), [*shown, ("parameters (millions)", size.params_millions)])
    return directory


VERB = Verb(
    name="eval",
    summary="measure any student or teacher on shards",
    details="CHECKPOINT is a run directory of train, tune or smoke, a checkpoint, a model directory, Meta's sam3.pt,\n"
    "a Hugging Face id, or `embedded`. Masks are compared at the resolution of the original images.\n"
    f"Keys: {', '.join(EVAL_TAKES[:5])},\n{', '.join(EVAL_TAKES[5:])}.",
    examples=(
        "sam3dist eval embedded shards/val",
        "sam3dist eval runs/train-small shards/val eval.threshold=0.4",
        "sam3dist eval facebook/sam3 shards/val eval.max_images=200 teacher.precision=bf16",
    ),
    arguments=arguments,
    run=run,
)
