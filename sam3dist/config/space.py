"""What a search may vary: a range for each dotted key, under what condition it means anything, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field

from sam3dist.config.base import Settings


class Span(Settings):
    """What every range can be told beside its values."""

    when: dict[str, Any] = Field(default_factory=dict)
    """Keys earlier in the space, each with the value, or the list of values, under which this one is varied; else it
    stays what the base run has. A width of the vision transformer means nothing beside another backbone."""


class Choice(Span):
    """One of a few values."""

    choice: tuple[Any, ...] = Field(min_length=1)
    """The values, at least one."""


class Uniform(Span):
    """A number, each as likely as another."""

    uniform: tuple[float, float]
    """The lowest and the highest."""


class LogUniform(Span):
    """A number whose logarithms are equally likely, as suits rates and weights."""

    loguniform: tuple[float, float]
    """The lowest, above 0, and the highest."""


class Integer(Span):
    """A whole number, each as likely as another."""

    integer: tuple[int, int]
    """The lowest and the highest."""
    step: int = Field(1, ge=1)
    """Between neighbouring values, counted from the lowest."""


class Remainder(Settings):
    """No question of its own: what another key of the space leaves of 1, such as beta = 1 - alpha."""

    one_minus: str
    """The key, earlier in the space, of numbers from 0 to 1."""


Range = Choice | Uniform | LogUniform | Integer
Space = Mapping[str, Range | Remainder]


def ends(span: Range) -> tuple[Any, ...]:
    """The values that bound a range: every choice, or the lowest and the highest."""
    if isinstance(span, Choice):
        return span.choice
    if isinstance(span, Integer):
        return span.integer
    return span.loguniform if isinstance(span, LogUniform) else span.uniform


def draw(space: Space, ask: Callable[[str, Range], Any]) -> dict[str, Any]:
    """One point of a space: dotted keys with their values, of those whose condition holds.

    ask: the value of a key with its range; called in the order of the space.
    """
    values: dict[str, Any] = {}
    for key, span in space.items():
        if isinstance(span, Remainder):
            if span.one_minus in values:
                values[key] = 1.0 - values[span.one_minus]
        elif all(name in values and values[name] in _listed(wanted) for name, wanted in span.when.items()):
            values[key] = ask(key, span)
    return values


def mistake(space: Space) -> str | None:
    """What is wrong with a space in itself, in one line, or None."""
    earlier: dict[str, Range | Remainder] = {}
    for key, span in space.items():
        wrong = _wrong(span, earlier)
        if wrong:
            return f"space.{key}{wrong}"
        earlier[key] = span
    return None


def _wrong(span: Range | Remainder, earlier: Space) -> str | None:
    if isinstance(span, Remainder):
        other = earlier.get(span.one_minus)
        if other is None or isinstance(other, Remainder):
            return f".one_minus={span.one_minus}: must be a range that stands before it in the space."
        bounds = ends(other)
        if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in bounds):
            return f".one_minus={span.one_minus}: is not from 0 to 1; give that key such a range."
        return None
    if not isinstance(span, Choice):
        lowest, highest = ends(span)
        if lowest > highest:
            return f": the lower bound {lowest} is above the upper bound {highest}."
        if isinstance(span, LogUniform) and lowest <= 0:
            return ": loguniform needs a lower bound above 0."
    for name, wanted in span.when.items():
        if name not in earlier:
            return f".when.{name}: must be a key that stands before it in the space."
        other = earlier[name]
        known = other.choice if isinstance(other, Choice) else _listed(wanted)
        missing = [value for value in _listed(wanted) if value not in known]
        if missing:
            return f".when.{name}={missing[0]}: is none of its choices; use {', '.join(map(str, known))}."
    return None


def _listed(wanted: Any) -> tuple[Any, ...]:
    return tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)
