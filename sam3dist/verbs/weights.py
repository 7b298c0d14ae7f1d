"""`sam3dist weights`: a network from the hub, from Meta or from a run of ours, in the format of transformers."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from sam3dist.errors import ConfigError
from sam3dist.verbs.grammar import Overrides, Verb, slug

DOWNLOADS = ".download"
"""Inside OUT_DIR: what has come of the hub's files, until the network is written."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a Hugging Face id, a directory, a run or checkpoint of ours, or Meta's sam3.pt",
    )
    parser.add_argument("out", metavar="OUT_DIR", nargs="?", help="where it goes; by default runs/weights-SOURCE")


def run(options: argparse.Namespace, overrides: Overrides) -> Path:
    from sam3dist.config.flat import flat_settings
    from sam3dist.models.settings import WeightsSettings

    started = time.perf_counter()
    settings = flat_settings(WeightsSettings, overrides, "weights")
    out = Path(options.out or f"runs/weights-{slug(options.source)}")
    require_free(out)

    from sam3dist.models.layouts import find
    from sam3dist.models.size import model_size
    from sam3dist.models.weights import write
    from sam3dist.report import write_report
    from sam3dist.verbs.console import stages, table

    with stages() as update:
        found = find(options.source, settings, out / DOWNLOADS, update)
        files = write(found.segmenter, out, settings, update)
    shutil.rmtree(out / DOWNLOADS, ignore_errors=True)
    size = model_size(found.segmenter.net.config)
    report: dict[str, Any] = {
        "verb": "weights",
        "seconds": time.perf_counter() - started,
        "source": found.source,
        "checkpoint": str(out),
        "parameters": found.segmenter.net.num_parameters(),
        "params_millions": size.params_millions,
        "dtype": settings.precision,
        "bytes": sum(file["bytes"] for file in files.values()),
        "sha256": {name: file["sha256"] for name, file in files.items()},
        "left_out": found.left_out,
        "megabytes": size.megabytes,
    }
    write_report(out, report)
    table(("file", "bytes", "SHA-256"), [(name, file["bytes"], file["sha256"]) for name, file in files.items()])
    if found.left_out:
        columns = ("left out", "tensors", "parameters", "bytes")
        keys = ("name", "tensors", "parameters", "bytes")
        table(columns, [[item.get(key) for key in keys] for item in found.left_out])
    print(f"{size.params_millions:.1f} million parameters in {settings.precision}; for runs teacher.source={out}")
    return out


def require_free(out: Path) -> None:
    """ConfigError for a directory with anything in it but what an interrupted `weights` has left there."""
    others = sorted(item.name for item in out.iterdir() if not item.name.startswith(".")) if out.is_dir() else []
    if others or out.is_file():
        what = f"holds {others[0]} already" if others else "is a file"
        raise ConfigError(f"{out} {what}; give another OUT_DIR, or remove it.")


VERB = Verb(
    name="weights",
    summary="fetch or convert a network, and check every weight of it",
    details="SOURCE may be a Hugging Face id (HF_TOKEN opens gated ones): a download that was cut goes on with the\n"
    "same command, and is compared with the checksums of the hub. Or Meta's sam3.pt, whose every weight must find\n"
    "its place, or a directory; of a run or checkpoint the student alone is taken. Pickles that could run code are\n"
    "refused. What is written is read again and compared, and plain transformers loads it.\n"
    "Keys: precision (fp32, bf16, fp16), revision, max_shard_mb.",
    examples=(
        "sam3dist weights facebook/sam3",
        "sam3dist weights jetjodh/sam3 models/sam3 precision=bf16",
        "sam3dist weights sam3.pt models/sam3",
        "sam3dist weights runs/train-small models/small precision=fp16",
    ),
    arguments=arguments,
    run=run,
)
