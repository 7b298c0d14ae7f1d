"""What trials set: names short enough for a label, and where a value lies among those that were tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import Any, TypeGuard

from sam3dist.wording import shown

WIDE = 10.0
"""Positive numbers of which the greatest is this many times the least lie on a log axis."""
FEW = 6
"""So many different numbers have a tick each; of more only the least, the middle and the greatest."""
APART = 0.08
"""Least distance between two ticks, as a share of the axis."""


def is_number(value: Any) -> TypeGuard[float]:
    """Whether the value is a finite number, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def worded(value: Any) -> str:
    """A value as readers want it; null is a choice like any other."""
    return "none" if value is None else shown(value)


def keys_of(trials: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every dotted key that some trial sets, in the order in which they appear."""
    return list(dict.fromkeys(key for trial in trials for key in trial["config"]))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each dotted key, or as many of its last words as tell it from the others."""

    def ending(key: str, words: int) -> str:
        return ".".join(key.split(".")[-words:])

    names = {}
    for key in keys:
        words = 1
        while words < len(key.split(".")) and sum(ending(other, words) == ending(key, words) for other in keys) > 1:
            words += 1
        names[key] = ending(key, words).replace("_", " ").replace(".", " ")
    return names


@dataclass(frozen=True)
class Axis:
    """The values of one key, from 0 to 1: numbers by size, anything else one after the other."""

    values: tuple[Any, ...]
    """What was tried, each once: numbers from the least to the greatest, all else as text in alphabetical order."""
    numeric: bool
    log: bool

    def place(self, value: Any) -> float | None:
        """Where the value lies; None for one that was not tried."""
        if not self.numeric:
            text = worded(value)
            return self._share(self.values.index(text), 0, len(self.values) - 1) if text in self.values else None
        if not is_number(value):
            return None
        low, high = self.values[0], self.values[-1]
        if self.log:
            return self._share(log10(value), log10(low), log10(high)) if value > 0 else None
        return self._share(value, low, high)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and their labels, none too close to another."""
        if len(self.values) <= FEW or not self.numeric:
            chosen = list(self.values)
        else:
            low, high = self.values[0], self.values[-1]
            middle = (low * high) ** 0.5 if self.log else (low + high) / 2
            chosen = [low, middle, high]
        placed = [(self.place(value), _brief(value)) for value in chosen]
        kept: list[tuple[float, str]] = []
        for where, label in placed:
            if where is not None and (not kept or not self.numeric or where - kept[-1][0] >= APART):
                kept.append((where, label))
        return kept

    @staticmethod
    def _share(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else shown(value)


def axis_of(values: Iterable[Any]) -> Axis:
    """The axis of all these values: of numbers if all of them are, and a log axis if they are wide apart."""
    found = list(values)
    if not all(is_number(value) for value in found):
        return Axis(tuple(sorted({worded(value) for value in found})), numeric=False, log=False)
    numbers = tuple(sorted(set(found)))
    return Axis(numbers, numeric=True, log=bool(numbers) and numbers[0] > 0 and numbers[-1] >= WIDE * numbers[0])
