"""The words of a command line, the same for verbs and for jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sam3dist.errors import ConfigError

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

Overrides = dict[str, str]

EVAL_TAKES = (
    "eval.threshold",
    "eval.max_images",
    "eval.images_per_batch",
    "eval.prompts_per_batch",
    "data.decode_threads",
    "data.prefetch_batches",
    "data.max_pixels",
    "data.max_rejected_share",
    "teacher.precision",
    "teacher.geometry_token",
    "run.dir",
)
"""What an evaluation heeds of a run's settings, in one process."""


def split(words: Sequence[str]) -> tuple[list[str], Overrides]:
    """The arguments, and the overrides by key. A word is an override if it starts with `dotted_key=`.

    ConfigError for a key given twice: one of the two would have no effect.
    """
    arguments: list[str] = []
    overrides: Overrides = {}
    for word in words:
        match = re.match(r"([A-Za-z_]\w*(?:\.\w+)*)=", word)
        if match is None:
            arguments.append(word)
        elif match[1] in overrides:
            raise ConfigError(f"{match[1]}: given twice ({overrides[match[1]]} and {word[match.end() :]}); keep one.")
        else:
            overrides[match[1]] = word[match.end() :]
    return arguments, overrides


def settings(verb: str, overrides: Mapping[str, str], takes: Iterable[str]) -> DistillConfig:
    """The defaults with overrides, for verbs without a preset; `takes` names the keys or sections they heed.

    ConfigError for a real key that the verb would ignore, and whatever `with_overrides` finds wrong.
    """
    from sam3dist.config.distill import DistillConfig
    from sam3dist.config.load import with_overrides

    config = with_overrides(DistillConfig(name=verb), overrides)
    known = tuple(takes)
    for key in overrides:
        if not any(key == taken or key.startswith(taken + ".") for taken in known):
            raise ConfigError(f"{key}: has no effect on {verb}, which takes {', '.join(known)}.")
    return config


def run_dir(config: DistillConfig, verb: str, *names: str) -> Path:
    """Where a verb writes: `run.dir`, or runs/VERB-NAMES; the names are all that it was asked about.

    ConfigError where `run.resume` names no run.
    """
    resume = config.run.resume
    if resume is not None and not (Path(resume) / "config.yaml").is_file():
        raise ConfigError(f"run.resume={resume}: no run was begun there; to begin one, write run.dir={resume}.")
    return Path(config.run.dir or "-".join([f"runs/{verb}", *map(slug, names)]))


def slug(text: str) -> str:
    """The text as a file name: letters, digits, dots and dashes; of a path its last two parts at most."""
    parts = [part for part in re.split(r"[/\\]+", text) if part not in ("", ".", "..")]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts[-2:])).strip("-.") or "run"
