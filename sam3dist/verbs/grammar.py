"""The one grammar of all verbs: `sam3dist VERB [ARGUMENTS] [dotted.key=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sam3dist.config.words import Overrides, run_dir, settings, slug, split
from sam3dist.errors import ConfigError

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
