"""The one grammar of all verbs: `sam3dist VERB [ARGUMENTS] [dotted.key=value ...]`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sam3dist.config.words import Overrides, settings, split
from sam3dist.errors import ConfigError

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

__all__ = ["Overrides", "Parser", "Verb", "run_dir", "settings", "slug", "split"]


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


def run_dir(config: DistillConfig, verb: str, name: str) -> Path:
    """Where a verb writes: `run.dir`, or runs/VERB-NAME."""
    return Path(config.run.dir or f"runs/{verb}-{slug(name)}")


def slug(text: str) -> str:
    """The text as a file name: letters, digits, dots and dashes; of a path its last two parts at most."""
    parts = [part for part in re.split(r"[/\\]+", text) if part not in ("", ".", "..")]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts[-2:])).strip("-.") or "run"
