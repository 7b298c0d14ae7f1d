"""`sam3dist submit`: another verb as a job on a Ray cluster."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from sam3dist.errors import ConfigError
from sam3dist.verbs.grammar import Overrides, Verb

JOBS = ("prepare", "teach", "train", "tune", "eval")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", metavar="VERB", help="prepare, teach, train, tune or eval")
    parser.add_argument("words", metavar="...", nargs="*", help="its arguments and overrides, as without submit")


def run(options: argparse.Namespace, overrides: Overrides) -> int:
    return run_words([options.verb, *options.words, *(f"{key}={value}" for key, value in overrides.items())])


def run_words(words: Sequence[str]) -> int:
    """The exit code of the job. `run.address=` is taken out: inside the job the cluster is the job's own."""
    address = [word.removeprefix("run.address=") for word in words if word.startswith("run.address=")]
    rest = [word for word in words if not word.startswith("run.address=")]
    if not rest:
        raise ConfigError(
            "submit: which verb? Give prepare, teach, train, tune or eval, as in `sam3dist submit train small`."
        )
    if rest[0] not in JOBS:
        raise ConfigError(f"submit {rest[0]}: not a job; use one of {', '.join(JOBS)}.")
    if address and not re.match(r"(https?|ray)://", address[-1]):
        raise ConfigError(f"run.address={address[-1]}: submit talks to the dashboard; write http://HOST:8265.")
    from cluster.submit import submit

    return submit(rest, address[-1] if address else None)


VERB = Verb(
    name="submit",
    summary="run another verb as a Ray job: uploads this folder, follows the log, gives the job's exit code",
    details="The cluster is the one of run.address=http://HOST:8265 (its dashboard) or RAY_API_SERVER_ADDRESS.\n"
    "Paths in the arguments are paths on the cluster. Ctrl-C stops following; the job goes on.",
    examples=(
        "sam3dist submit tune search_spaces/full.yaml data.train=/data/train data.val=/data/val",
        "sam3dist submit train small run.address=http://head:8265 strategy.num_workers=8 run.dir=/data/runs/small",
    ),
    arguments=arguments,
    run=run,
)
