"""Numbers of a student's shape: which are allowed, and which follow from others."""

from __future__ import annotations

from sam3dist.errors import ConfigError


def scaled(old: int, width: int, old_width: int) -> int:
    """`old` in the proportion of the two widths, at least 1."""
    return max(1, round(old * width / old_width))


def require_multiple(setting: str, value: int, step: int, reason: str) -> None:
    """ConfigError that names the nearest multiples where `value` is none of `step`; `reason` says what step is."""
    if value % step:
        lower, upper = value // step * step, (value // step + 1) * step
        choice = f"{lower} or {upper}" if lower else str(upper)
        raise ConfigError(f"student.{setting}={value} is not a multiple of {reason}; use {choice}.")
