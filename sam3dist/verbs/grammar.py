"""The one grammar of all verbs: `sam3dist VERB [ARGUMENTS] [dotted.key=value ...]`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sam3dist.errors import ConfigError

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

Overrides = dict[str, str]


@dataclass(frozen=True)
class Verb:
    """What the command line knows of a verb."""

    name: str
    summary: str
    details: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Overrides], Path | int | None]
    """Gives the run directory, which is printed last; or an exit code; or None."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a ConfigError of one line instead of a usage screen."""

    def error(self, message: str) -> NoReturn:
        verb = self.prog.removeprefix("sam3dist").strip()
        one_line = " ".join(message.split())
        raise ConfigError(f"{verb + ': ' if verb else ''}{one_line}; `{self.prog} --help` shows examples.")


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


def run_dir(config: DistillConfig, verb: str, name: str) -> Path:
    """Where a verb writes: `run.dir`, or runs/VERB-NAME."""
    return Path(config.run.dir or f"runs/{verb}-{slug(name)}")


def slug(text: str) -> str:
    """The text as a file name: letters, digits, dots and dashes; of a path its last two parts at most."""
    parts = [part for part in re.split(r"[/\\]+", text) if part not in ("", ".", "..")]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts[-2:])).strip("-.") or "run"
