"""`sam3dist submit`: another verb as a job on a Ray cluster."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from sam3dist.errors import ConfigError
from sam3dist.verbs.grammar import Overrides, Verb, split

JOBS = ("prepare", "teach", "train", "tune", "eval")
OWN = "submit."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", metavar="VERB", help="prepare, teach, train, tune or eval")
    parser.add_argument("words", metavar="...", nargs="*", help="its arguments and overrides, as without submit")


def run(options: argparse.Namespace, overrides: Overrides) -> int:
    return run_words([options.verb, *options.words, *(f"{key}={value}" for key, value in overrides.items())])


def run_words(words: Sequence[str]) -> int:
    """The exit code of the job. `submit.KEY=` and `run.address=` are for here; inside, the cluster is the job's own."""
    own = [word for word in words if word.startswith(OWN)]
    address = [word.removeprefix("run.address=") for word in words if word.startswith("run.address=")]
    rest = [word for word in words if not word.startswith((OWN, "run.address="))]
    if not rest:
        raise ConfigError(
            "submit: which verb? Give prepare, teach, train, tune or eval, as in `sam3dist submit train small`."
        )
    if rest[0] not in JOBS:
        raise ConfigError(f"submit {rest[0]}: not a job; use one of {', '.join(JOBS)}.")
    if address and not re.match(r"(https?|ray)://", address[-1]):
        raise ConfigError(f"run.address={address[-1]}: submit talks to the dashboard; write http://HOST:8265.")
    from sam3dist.config.flat import flat_settings
    from sam3dist.config.submission import SubmitSettings

    nameless, keys = split(own)
    if nameless:
        raise ConfigError(f"{nameless[0]}: write submit.KEY=VALUE, as in submit.on_interrupt=stop.")
    settings = flat_settings(SubmitSettings, keys, "submit", "submit")
    from cluster.submit import submit

    return submit(rest, address[-1] if address else None, settings)


VERB = Verb(
    name="submit",
    summary="run another verb as a Ray job: uploads this folder, follows the log, gives the job's exit code",
    details="The cluster is the one of run.address=http://HOST:8265 (its dashboard) or RAY_API_SERVER_ADDRESS; one\n"
    "that asks for a token gets that of RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.\n"
    "Paths in the arguments are paths on the cluster. Shards, stored answers, runs, checkpoints and networks are not\n"
    "uploaded, nor what .gitignore and .rayignore name. Exit code: that of the job, 143 if it was stopped; 130 after\n"
    "Ctrl-C.\n"
    "Keys: submit.on_interrupt (leave: the job goes on after Ctrl-C; stop: it saves a checkpoint and ends, for which\n"
    "it has submit.grace_s), submit.working_dir (null where all nodes have the package), submit.id (the same is not\n"
    "run twice), submit.follow, submit.env.NAME (of the job and its workers), submit.metadata.NAME (for the\n"
    "dashboard), submit.resources.NAME (what the driver reserves: CPU, GPU, memory or your own).",
    examples=(
        "sam3dist submit tune search_spaces/full.yaml data.train=/data/train data.val=/data/val",
        "sam3dist submit train small run.address=http://head:8265 strategy.num_workers=8 run.dir=/data/runs/small",
        "sam3dist submit train small run.dir=/data/runs/small submit.on_interrupt=stop submit.id=small-1",
        "sam3dist submit train small submit.resources.driver=0.001 submit.env.HF_HOME=/hub submit.working_dir=null",
    ),
    arguments=arguments,
    run=run,
)
