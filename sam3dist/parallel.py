"""Parallel coordinates: every trial as a line over an axis for each knob, its size and its quality.

Plotly's own chart of that name needs WebGL, says nothing of the line under the pointer and leaves out trials that lack
a knob; lines of an ordinary chart do all of this.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from sam3dist.knobs import Axis, axis_of, is_number, keys_of, short_names
from sam3dist.objective import searched_size
from sam3dist.plots import TITLES

WORST, BEST = (141, 153, 166), (255, 107, 26)
"""Colours of quality, grey to orange, both seen on white and on black."""
SHADES = 6
SPREAD = 0.03
"""Lines that meet at a value are drawn this far apart, as a share of the axis, so that each can be pointed at."""
FEW = 8
"""Axes with at most so many values have lines that meet."""
AXIS_WIDTH, ENDS_WIDTH = 88, 110
MOST_LETTERS = 12


@dataclass(frozen=True)
class Drawing:
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    width: int
    """Pixels below which labels would run into each other."""


def parallel(trials: Sequence[Mapping[str, Any]], quality: str, size: str) -> Drawing | None:
    """The lines of all trials that have a size, by `customdata` their names; None where no knob was varied.

    size: what theirs is called. A trial that lacks a knob has a gap there. Those that have not measured `quality` end
    before its axis.
    """
    shown = [trial for trial in trials if is_number(searched_size(trial))]
    columns = {key: [_of(trial["config"], key) for trial in shown] for key in keys_of(shown)}
    columns = {key: values for key, values in columns.items() if len({repr(value) for value in values}) > 1}
    if not columns:
        return None
    names = list(short_names(list(columns)).values())
    columns |= {"": [searched_size(trial) for trial in shown]}
    columns |= {quality: [_finite((trial.get("metrics") or {}).get(quality)) for trial in shown]}
    names += [size, TITLES.get(quality, quality)]
    axes = [axis_of(value for value in values if value is not ABSENT) for values in columns.values()]
    axes[-2] = replace(axes[-2], log=True)  # as in the plot of quality against size
    heights = [_heights(axis, values) for axis, values in zip(axes, columns.values(), strict=True)]
    shades = _shades(columns[quality])
    return Drawing(_lines(shown, heights, shades), _layout(names, axes), AXIS_WIDTH * len(axes) + ENDS_WIDTH)


ABSENT = object()


def _of(config: Mapping[str, Any], key: str) -> Any:
    return config.get(key, ABSENT)


def _finite(value: Any) -> Any:
    return value if is_number(value) else ABSENT


def _heights(axis: Axis, values: Sequence[Any]) -> list[float | None]:
    """Where each trial crosses the axis; those of one value a little apart, in the order of the trials."""
    places = [None if value is ABSENT else axis.place(value) for value in values]
    if len(axis.values) > FEW:
        return places
    spread = [SPREAD * (2 * index / max(1, len(values) - 1) - 1) for index in range(len(values))]
    return [None if place is None else place + shift for place, shift in zip(places, spread, strict=True)]


def _shades(qualities: Sequence[Any]) -> list[int]:
    """The shade of each trial, by its rank: among many of nearly the same quality, too, the best stand out."""
    ranked = sorted(value for value in qualities if value is not ABSENT)
    ranks = [None if value is ABSENT else bisect_left(ranked, value) for value in qualities]
    most = max(1, len(ranked) - 1)
    return [0 if rank is None else rank * (SHADES - 1) // most for rank in ranks]


def _lines(
    trials: Sequence[Mapping[str, Any]], heights: list[list[float | None]], shades: list[int]
) -> list[dict[str, Any]]:
    """A trace for each shade and width, the best last and so on top."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for index, trial in enumerate(trials):
        groups.setdefault((shades[index], trial["state"] == "done"), []).append(index)
    traces = []
    for (shade, done), members in sorted(groups.items()):
        mixed = [round(w + (b - w) * shade / (SHADES - 1)) for w, b in zip(WORST, BEST, strict=True)]
        color = f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"
        xs, ys, keys = [], [], []
        for index in members:
            xs += [*range(len(heights)), None]
            ys += [*(column[index] for column in heights), None]
            keys += [*[trials[index]["trial"]] * len(heights), None]
        look: dict[str, Any] = {
            "line": {"color": color, "width": 1.8 if done else 0.9},
            "marker": {"color": color, "size": 4},
        }
        look |= {"opacity": max(0.45, min(1, 20 / len(trials)))}
        trace = {"type": "scatter", "x": xs, "y": ys, "customdata": keys, "mode": "lines+markers"}
        traces.append(trace | look | {"hoverinfo": "none"})
    return traces


def _layout(names: Sequence[str], axes: Sequence[Axis]) -> dict[str, Any]:
    """Upright axes with their names above and the values at their right."""
    shapes, labels = [], []
    line = {"color": "rgb(141,153,166)", "width": 1}
    for x, (name, axis) in enumerate(zip(names, axes, strict=True)):
        shapes.append({"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line, "layer": "below"})
        title = {"text": escape(name).replace(" ", "<br>"), "y": 1.06, "yanchor": "bottom", "font": {"size": 12}}
        labels.append({"x": x, "showarrow": False, **title})
        for y, text in axis.ticks():
            short = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
            tick = {"text": escape(short), "xanchor": "left", "xshift": 4, "font": {"size": 11}}
            labels.append({"x": x, "y": y, "showarrow": False, **tick})
    hidden = {"visible": False, "fixedrange": True}
    return {
        "xaxis": {"range": [-0.45, len(axes) - 0.4], **hidden},
        "yaxis": {"range": [-0.06, 1.06], **hidden},
        "shapes": shapes,
        "annotations": labels,
        "margin": {"l": 10, "r": 10, "t": 64, "b": 8},
        "height": 420,
    }
