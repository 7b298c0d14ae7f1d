"""Numbers of a student's shape: which are allowed, and which follow from others."""

from __future__ import annotations

from math import inf

from sam3dist.errors import ConfigError


def scaled(old: int, width: int, old_width: int) -> int:
    """`old` in the proportion of the two widths, at least 1."""
    return max(1, round(old * width / old_width))


def require_multiple(setting: str, value: int, step: int, reason: str, most: float = inf) -> None:
    """ConfigError that with the nearest multiples, up to `most`, where `value` is none of `step`, which is `reason`."""
    if value % step:
        near = (value // step * step, (value // step + 1) * step)
        choice = " or ".join(str(number) for number in near if 0 < number <= most)
        raise ConfigError(f"student.{setting}={value} is not a multiple of {reason}; use {choice}.")
