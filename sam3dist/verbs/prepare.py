"""`sam3dist prepare`: annotations and images to shards."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sam3dist.verbs.grammar import Overrides, Verb


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", metavar="INSTANCES.json", help="COCO instances, or SA-Co style pairs")
    parser.add_argument("images", metavar="IMAGES_DIR", help="the folder that file names start from")
    parser.add_argument("out", metavar="OUT_DIR", help="where shards, manifest.json and the report go")


def run(options: argparse.Namespace, overrides: Overrides) -> Path:
    from sam3dist.config.flat import flat_settings
    from sam3dist.data.prepare import prepare
    from sam3dist.data.settings import PrepareSettings
    from sam3dist.report import write_report
    from sam3dist.verbs.console import stages, table

    started = time.perf_counter()
    chosen = flat_settings(PrepareSettings, overrides, "prepare")
    out = Path(options.out)
    with stages() as update:
        manifest = prepare(options.annotations, options.images, out, chosen, update)
    counts = {name: manifest[name] for name in ("rows", "phrases", "positives", "negatives", "instances")}
    write_report(
        out,
        {
            "verb": "prepare",
            "seconds": time.perf_counter() - started,
            **counts,
            "rejected": manifest["rejected"],
            "shards": len(manifest["shards"]),
            "content_sha256": manifest["content_sha256"],
            "unchanged": manifest.get("unchanged", False),
        },
    )
    table(list(counts), [list(counts.values())])
    if manifest["rejected"]:
        table(("set aside because of", "records"), list(manifest["rejected"].items()))
        print(f"Which ones: {out / 'rejected.jsonl'}")
    if manifest.get("unchanged"):
        print("Nothing to do: the shards were already made from these annotations and settings.")
    return out


VERB = Verb(
    name="prepare",
    summary="turn COCO annotations and images into shards",
    details="Reads COCO instances or SA-Co pairs, checks every record, sets the bad ones aside with a reason, finds\n"
    "phrases that name nothing in an image, and writes Parquet shards. The same input gives the same bytes.\n"
    "Keys: exhaustive, max_negatives_per_image, max_phrase_chars, max_pixels, max_side,\n"
    "max_rejected_share, rows_per_group, rows_per_shard, threads.",
    examples=(
        "sam3dist prepare instances_train.json images/ shards/train",
        "sam3dist prepare instances_val.json images/ shards/val exhaustive=false max_negatives_per_image=8",
    ),
    arguments=arguments,
    run=run,
)
