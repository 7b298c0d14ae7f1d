"""What the entry points `python -m cluster.VERB` share: their words, their errors, their exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cluster.mistakes import persons_mistake
from cluster.stopping import leave_on_sigterm
from sam3dist.config.words import split as words_and_keys
from sam3dist.errors import ConfigError, in_one_line

UPLOADED = "working_dir_files"
"""Below a directory of this name Ray unpacks the folder of a submitted job."""


def run(work: Callable[[Sequence[str]], Path]) -> NoReturn:
    """Do the work on the words of the command line and exit: 0, 2 for a person's mistake in one line, 1 for ours.

    `work` gives the run directory, which is printed last. SIGTERM, as of `ray job stop`, ends it with 143.
    """
    leave_on_sigterm()
    try:
        print(work(sys.argv[1:]), flush=True)
    except Exception as error:
        mistake = in_one_line(persons_mistake(error) or error)
        if mistake is None or os.environ.get("SAM3DIST_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        if mistake is not None:
            print(f"sam3dist: {mistake}", file=sys.stderr, flush=True)
        sys.exit(1 if mistake is None else 2)
    sys.exit(0)


def split(words: Sequence[str], *names: str) -> tuple[list[str], dict[str, str]]:
    """The arguments, exactly as many as `names`, and the overrides `dotted.key=value` by key; else ConfigError."""
    arguments, overrides = words_and_keys(words)
    if len(arguments) != len(names):
        given = " ".join(arguments) or "nothing"
        raise ConfigError(f"expected {' '.join(names)} [dotted.key=value ...], got {given}.")
    return arguments, overrides


def lasting(directory: str, name: str = "run.dir") -> Path:
    """The directory that results go to, after a warning where it lies in the folder that Ray uploaded for the job."""
    path = Path(directory)
    if UPLOADED in path.resolve().parts:
        print(
            f"sam3dist: {name}={directory} lies in the folder that Ray uploaded to this node and will delete; "
            "give an absolute path that all nodes share.",
            file=sys.stderr,
            flush=True,
        )
    return path


def numbers(values: Mapping[str, Any]) -> str:
    """The numbers among the values in one line, for the log."""
    return "  ".join(f"{key} {value:.4g}" for key, value in values.items() if isinstance(value, int | float))
