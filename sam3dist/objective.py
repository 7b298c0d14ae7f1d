"""Quality against size: one score to rank by, the front to choose from, and the area under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, log10
from typing import TYPE_CHECKING, Any

from sam3dist.errors import ConfigError

if TYPE_CHECKING:
    from sam3dist.config.objective import ObjectiveConfig
    from sam3dist.models.size import ModelSize

Point = tuple[float, float]
"""(quality, size): more of the first and less of the second is better."""


LATENCY_REFERENCE_MS = 1000.0
"""What latencies are relative to: ten times what a phone may take. A constant, since two measurements of one network
differ."""


def size_of(model: ModelSize, objective: ObjectiveConfig, latency_ms: float | None = None) -> float:
    """How large a network is by `objective.size`: millions of parameters, megabytes or milliseconds."""
    if objective.size == "params_millions":
        return model.params_millions
    if objective.size == "megabytes":
        return model.megabytes[objective.precision]
    assert latency_ms is not None, "nobody has measured it"
    return latency_ms


def reference_size(teacher: ModelSize, objective: ObjectiveConfig) -> float:
    """The size by `objective.size` that scores and hypervolumes are relative to: the teacher's, if that is known."""
    return LATENCY_REFERENCE_MS if objective.size == "latency_ms" else size_of(teacher, objective)


def searched_size(row: Mapping[str, Any]) -> Any:
    """The size of a trial of a report by the `objective.size` of its search; None where it was not measured."""
    return row["size"] if "size" in row else row.get("params_millions")  # older reports know of parameters only


def reported_size(sizes: Mapping[str, Any], objective: Mapping[str, Any]) -> float | None:
    """The size by `objective.size` of a network whose ModelSize a report has; None for latencies, which it has not."""
    kind = objective.get("size", "params_millions")
    return sizes["megabytes"][objective["precision"]] if kind == "megabytes" else sizes.get(kind)


def size_title(objective: Mapping[str, Any]) -> str:
    """What readers call the size that was searched for."""
    kind = objective.get("size", "params_millions")
    titles = {"params_millions": "parameters (millions)", "latency_ms": "latency (ms)"}
    return titles.get(kind) or f"MB in {objective['precision']}"


def score(metrics: Mapping[str, float], size: float, objective: ObjectiveConfig, reference: float) -> float:
    """quality - size_weight * log10(size / reference), what trials are ranked by.

    A student of the reference's size (the teacher's) scores its quality; one ten times smaller scores `size_weight`
    more. A quality that is not finite scores -inf: ASHA would let NaN pass every rung, -inf is last.
    """
    if objective.quality not in metrics:
        known = ", ".join(sorted(metrics))
        raise ConfigError(f"objective.quality={objective.quality} was not measured; use one of {known}.")
    assert size > 0, size
    assert reference > 0, reference
    quality = metrics[objective.quality]
    if not isfinite(quality):
        return -inf
    return quality - objective.size_weight * log10(size / reference)


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other beats, smallest first.

    A point is beaten by one with at least its quality and at most its size that is better in one of the two. Of
    equal points the first stands for all. A point with a number that is not finite is never on the front.
    """
    usable = [i for i, (quality, size) in enumerate(points) if isfinite(quality) and isfinite(size)]
    front: list[int] = []
    best = -inf
    for index in sorted(usable, key=lambda i: (points[i][1], -points[i][0], i)):
        quality, _ = points[index]
        if quality > best:
            front.append(index)
            best = quality
    return front


def hypervolume(points: Sequence[Point], reference: Point, *, log_size: bool = False) -> float:
    """The area of all (quality, size) that some point beats and that beat `reference`, exactly.

    reference: the least quality and the greatest size that are worth anything, such as (0, the teacher's size);
    points that are not better than it in both add nothing. Compare hypervolumes of one reference only. With
    `log_size` the size axis is log10(size), so that a halving counts the same everywhere; sizes must be positive.
    """
    floor, ceiling = reference
    assert isfinite(floor), reference
    assert isfinite(ceiling), reference
    inside = [(quality, size) for quality, size in points if quality > floor and size < ceiling]
    area, lowest = 0.0, floor
    for index in pareto_front(inside):  # smallest first, so quality rises: each adds the strip above those before
        quality, size = inside[index]
        width = log10(ceiling / size) if log_size else ceiling - size
        area += (quality - lowest) * width
        lowest = quality
    return area
