"""The charts of a search that answer the pointer: figures for plotly.js, which charts.js draws in the page."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from sam3dist.engine.loggers import read_history
from sam3dist.knobs import is_number, keys_of, short_names, worded
from sam3dist.objective import reported_size, searched_size, size_title
from sam3dist.parallel import parallel
from sam3dist.plots import STUDENT, TEACHER, TITLES, points_of
from sam3dist.wording import shown

GREY, SIZE = "#8d99a6", "#00a67d"
"""Seen on white and on black: trials off the front, and what is said of sizes beside the orange of quality."""
KINDS = {
    "done": ("beaten by another", GREY, "●", "circle"),
    "stopped": ("stopped early", GREY, "○", "circle-open"),
    "failed": ("failed on its way", GREY, "✕", "x-thin-open"),
    "refused": ("refused after all", GREY, "◇", "diamond-open"),
    "front": ("Pareto front", STUDENT, "●", "circle"),
}
"""Of trials: the name, the colour, and what marks them, as a sign and in plotly's words. The front is drawn last."""
FAINT = 0.35
LABEL_APART = (0.11, 0.07)
"""Least distance of two labels in shares of the axes: as wide and high as three digits on a phone."""
MOST_LETTERS = 60

Trace = dict[str, Any]
Trial = Mapping[str, Any]
Note = dict[str, Any]
"""What is shown beside the pointer, in plain text: "title", "rows" of a name and a value, "trial" if it is of one."""


@dataclass(frozen=True)
class Chart:
    """One figure of the page. A point's `customdata` is the key of its note, here or in `trial_notes`."""

    name: str
    title: str
    caption: str
    traces: list[Trace]
    layout: dict[str, Any]
    legend: list[tuple[str, str, str]]
    """A sign, its colour, and what it stands for."""
    notes: dict[str, Note] = field(default_factory=dict)
    min_width: int = 0
    """Pixels below which it scrolls sideways."""
    beside: bool = False
    """It shares a row with its neighbour where the page is wide."""


def charts(report: Mapping[str, Any], run_dir: Path) -> list[Chart]:
    """All that there is something to draw for, from the report of a search; nothing where its front is empty."""
    if not report["front"]:
        return []
    found = [_pareto(report), *_progress(report), _importances(report), _parallel(report), _curves(report, run_dir)]
    return [chart for chart in found if chart is not None]


def as_json(chart: Chart) -> dict[str, Any]:
    """The figure as plotly.js takes it, checked by plotly, in the manner that all charts of the page share."""
    from plotly.graph_objects import Figure

    figure = Figure(data=chart.traces)
    figure.update_layout(
        template="none",
        height=400,
        margin={"l": 52, "r": 14, "t": 8, "b": 46},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        showlegend=False,  # the page has its own, which wraps on a phone
        xaxis={"zeroline": False, "title": {"standoff": 8, "font": {"size": 13}}},
        yaxis={"zeroline": False, "title": {"standoff": 6, "font": {"size": 13}}, "automargin": True},
    )
    figure.update_layout(chart.layout)
    return json.loads(figure.to_json())


def library() -> str:
    """plotly.js, to be inlined: 4.8 MB."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def trial_notes(report: Mapping[str, Any]) -> dict[str, Note]:
    """What is known of each trial in a few rows, by its name."""
    names, quality = short_names(keys_of(report["trials"])), report["objective"]["quality"]
    front = {point["trial"] for point in report["front"]}
    notes = {}
    for trial in report["trials"]:
        state = str(trial["state"]) + (", on the front" if trial["trial"] in front else "")
        size = trial.get("megabytes") or {}
        rows = [["state", state], [TITLES.get(quality, quality), shown(_quality(trial, quality))]]
        rows.append(["parameters", f"{shown(trial.get('params_millions'))} M"])
        rows += [["latency", f"{shown(trial['latency_ms'])} ms"]] if trial.get("latency_ms") else []
        rows += [[f"MB in {kind}", shown(size[kind])] for kind in ("fp16", "int4") if kind in size]
        rows += [[names[key], _cut(worded(value))] for key, value in trial["config"].items()]
        rows += [["reason", _cut(str(trial["reason"]))]] if trial.get("reason") else []
        notes[trial["trial"]] = {"title": f"Trial {trial['trial']}", "rows": rows, "trial": trial["trial"]}
    return notes


def _pareto(report: Mapping[str, Any]) -> Chart:
    quality = report["objective"]["quality"]
    placed: dict[str, list[tuple[float, float, str]]] = {}
    for trial in report["trials"]:
        size, value = searched_size(trial), _quality(trial, quality)
        if is_number(size) and is_number(value) and _kind(report, trial) in KINDS:
            placed.setdefault(_kind(report, trial), []).append((size, value, trial["trial"]))
    teacher = _teacher(report)
    points = [point for group in placed.values() for point in group] + ([teacher] if teacher else [])
    left, right = _with_room([log10(size) for size, _, _ in points])
    bottom, top = _with_room([value for _, value, _ in points])
    traces = []
    for kind in [kind for kind in KINDS if kind in placed and kind != "front"]:
        name, color, _, symbol = KINDS[kind]
        look = {"size": 9, "symbol": symbol, "line": {"width": 0 if symbol == "circle" else 1.6}}
        traces.append(_dots(name, placed[kind], {"color": color, **look}))
    best = sorted(placed.get("front", []))
    if best:
        # Steps, because between two trials there is nothing one could deploy.
        xs, ys = [*(x for x, _, _ in best), 10**right], [*(y for _, y, _ in best), best[-1][1]]
        steps = {"mode": "lines", "line": {"color": STUDENT, "width": 2, "shape": "hv"}, "opacity": 0.6}
        traces.append({"type": "scatter", "x": xs, "y": ys, **steps, "hoverinfo": "skip"})
        where = [((log10(x) - left) / (right - left), (y - bottom) / (top - bottom)) for x, y, _ in best]
        text = [escape(name) if shown_ else "" for (_, _, name), shown_ in zip(best, _apart(where), strict=True)]
        dots = _dots("Pareto front", best, {"color": STUDENT, "size": 12})
        traces.append(dots | {"mode": "markers+text", "text": text, "textposition": "top left", "cliponaxis": False})
    legend, notes = _legend(placed), {}
    if teacher:
        legend.append(("★", TEACHER, "teacher"))
        traces.append(_dots("teacher", [teacher], {"color": TEACHER, "size": 17, "symbol": "star"}))
        rows = [[TITLES.get(quality, quality), shown(teacher[1])], [size_title(report["objective"]), shown(teacher[0])]]
        notes[teacher[2]] = {"title": "Teacher", "rows": rows}
    layout: dict[str, Any] = {
        "xaxis": {"type": "log", "range": [left, right], "title": {"text": size_title(report["objective"])}},
        "yaxis": {"range": [bottom, top], "title": {"text": TITLES.get(quality, quality)}},
        "height": 440,
    }
    layout["xaxis"] |= _log_ticks(left, right)
    caption = "Every trial by size and quality. The front is what no other trial beats in both."
    return Chart("pareto", "Quality against size", caption, traces, layout, legend, notes)


def _progress(report: Mapping[str, Any]) -> Iterator[Chart]:
    """The hypervolume by the trials that are over, and by the hours since the search began."""
    rows = report.get("progress") or []
    timed = [row for row in rows if row["hours"] is not None]
    kinds = (
        ("finished", rows, "trials that are done or stopped", "Hypervolume by trial"),
        ("hours", timed, "hours since the search began", "Hypervolume over time"),
    )
    caption = "How much of quality and size the front has won so far. Where it stays level, trials brought nothing."
    for column, told, label, title in kinds:
        if not told:
            continue
        keys = [f"{column} {row['trial']}" for row in told]
        xs, ys = [row[column] for row in told], [row["hypervolume"] for row in told]
        line = {"color": STUDENT, "width": 2, "shape": "hv"}
        look = {"mode": "lines+markers", "line": line, "marker": {"size": 6, "color": STUDENT}, "hoverinfo": "none"}
        trace = {"type": "scatter", "x": xs, "y": ys, "customdata": keys, **look}
        notes = {
            key: {
                "title": f"After trial {row['trial']}",
                "rows": [
                    ["hypervolume", shown(row["hypervolume"])],
                    ["trials that are over", shown(row["finished"])],
                    ["hours", shown(row["hours"])],
                ],
                "trial": row["trial"],
            }
            for key, row in zip(keys, told, strict=True)
        }
        layout: dict[str, Any] = {"xaxis": {"title": {"text": label}, "rangemode": "tozero"}, "height": 280}
        if column == "finished" and len(told) < 10:
            layout["xaxis"]["dtick"] = 1
        yield Chart(column, title, caption, [trace], layout, [], notes, beside=bool(timed))


def _importances(report: Mapping[str, Any]) -> Chart | None:
    """Two bars a knob, the most important for quality on top; faint where chance would give as much."""
    rows = report.get("importances") or []
    if not rows:
        return None
    names, quality = short_names([row["knob"] for row in rows]), report["objective"]["quality"]
    traces: list[Trace] = []
    legend: list[tuple[str, str, str]] = []
    notes: dict[str, Note] = {}
    marks: list[tuple[float, float]] = []
    kinds = (("quality", STUDENT, TITLES.get(quality, quality), -0.2), ("size", SIZE, "size", 0.2))
    for kind, color, name, shift in kinds:
        by_chance = f"{kind}_by_chance"
        keys = [f"{kind} {row['knob']}" for row in rows]
        seen = [1.0 if row[kind] > row[by_chance] else FAINT for row in rows]
        bars = {"x": [row[kind] for row in rows], "y": [index + shift for index in range(len(rows))], "width": 0.36}
        look = {"orientation": "h", "marker": {"color": color, "opacity": seen}, "hoverinfo": "none"}
        traces.append({"type": "bar", **bars, **look, "customdata": keys})
        legend.append(("■", color, f"for {name}"))
        marks += [(min(1.0, row[by_chance]), index + shift) for index, row in enumerate(rows)]
        for key, row in zip(keys, rows, strict=True):
            shares = [["importance", _percent(row[kind])], ["by chance up to", _percent(row[by_chance])]]
            notes[key] = {"title": f"{names[row['knob']]}, for {name}", "rows": shares}
    xs, ys = zip(*marks, strict=True)
    tick = {"symbol": "line-ns-open", "size": 13, "color": GREY, "line": {"width": 2}}
    traces.append({"type": "scatter", "x": xs, "y": ys, "mode": "markers", "marker": tick, "hoverinfo": "skip"})
    legend.append(("|", GREY, "what chance gives"))
    labels = {"tickvals": list(range(len(rows))), "ticktext": [escape(names[row["knob"]]) for row in rows]}
    layout: dict[str, Any] = {
        "xaxis": {"tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {**labels, "range": [len(rows) - 0.4, -0.6], "showgrid": False},
        "barmode": "overlay",
        "height": 110 + 44 * len(rows),
    }
    caption = (
        "Shares of all knobs (PED-ANOVA): how far the values of a knob among the better half of the done trials, and "
        "among the smaller half, differ from those of all. Faint below its mark, which chance alone passes in one "
        "search of twenty; of few trials, that hides true effects, too."
    )
    return Chart("importances", "What mattered", caption, traces, layout, legend, notes)


def _parallel(report: Mapping[str, Any]) -> Chart | None:
    drawn = parallel(report["trials"], report["objective"]["quality"], size_title(report["objective"]))
    if drawn is None:
        return None
    caption = "A line a trial, the better the more orange; thin where it was stopped early. A gap: it has no such knob."
    return Chart("parallel", "All trials at once", caption, drawn.traces, drawn.layout, [], min_width=drawn.width)


def _curves(report: Mapping[str, Any], run_dir: Path) -> Chart | None:
    """The quality of each trial over its steps, read from the run directory."""
    quality = report["objective"]["quality"]
    lines: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {}
    for trial in report["trials"]:
        points = points_of(read_history(run_dir / "trials" / trial["trial"] / "history.jsonl"), "eval", quality)
        if points:
            lines.setdefault(_kind(report, trial), []).append((trial["trial"], points))
    if not lines:
        return None
    traces: list[Trace] = []
    for kind in [kind for kind in KINDS if kind in lines]:
        name, color, _, symbol = KINDS[kind]
        xs, ys, keys, sizes = [], [], [], []
        for trial_name, points in lines[kind]:
            xs += [*(x for x, _ in points), None]
            ys += [*(y for _, y in points), None]
            keys += [*[trial_name] * len(points), None]
            sizes += [*[0] * (len(points) - 1), 7, 0]
        width = {"front": 2.2}.get(kind, 1.2)
        marker = {"symbol": symbol, "size": sizes, "color": color, "line": {"width": 1.6, "color": color}}
        look = {"mode": "lines+markers", "line": {"color": color, "width": width}, "marker": marker}
        trace = {"type": "scatter", "x": xs, "y": ys, "customdata": keys, "hoverinfo": "none", "name": name}
        traces.append(trace | look)
    teacher, legend = _teacher(report), _legend(lines)
    shapes = []
    if teacher:
        dashes = {"color": TEACHER, "width": 1.5, "dash": "dot"}
        across = {"xref": "paper", "x0": 0, "x1": 1, "y0": teacher[1], "y1": teacher[1]}
        shapes.append({"type": "line", "line": dashes, **across})
        traces.append({"type": "scatter", "x": [0], "y": [teacher[1]], "mode": "none", "hoverinfo": "skip"})  # in range
        legend.append(("┅", TEACHER, "teacher"))
    layout = {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": TITLES.get(quality, quality)}},
        "shapes": shapes,
        "height": 420,
    }
    caption = "Quality of every trial on the validation data, from the untrained student on."
    return Chart("curves", "Each trial as it trains", caption, traces, layout, legend)


def _legend(kinds: Container[str]) -> list[tuple[str, str, str]]:
    return [(sign, color, name) for kind, (name, color, sign, _) in KINDS.items() if kind in kinds]


def _dots(name: str, points: Sequence[tuple[float, float, str]], marker: dict[str, Any]) -> Trace:
    xs, ys, keys = (list(column) for column in zip(*points, strict=True))
    look = {"type": "scatter", "mode": "markers", "marker": marker, "hoverinfo": "none", "name": name}
    return {"x": xs, "y": ys, "customdata": keys, **look}


def _apart(places: Iterable[tuple[float, float]]) -> Iterator[bool]:
    """Whether each of these points, from left to right, has room for a label beside those before it."""
    taken: list[tuple[float, float]] = []
    wide, high = LABEL_APART
    for x, y in places:
        free = all(abs(x - other_x) > wide or abs(y - other_y) > high for other_x, other_y in taken)
        taken += [(x, y)] if free else []
        yield free


def _with_room(values: Sequence[float]) -> tuple[float, float]:
    """The range of these values with an eighth of it on either side, for a label on a phone."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.125 * (high - low) or 0.1
    return low - room, high + room


def _log_ticks(low: float, high: float) -> dict[str, Any]:
    """At round numbers between 10**low and 10**high; plotly's own leave out all but the last digit."""
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        every = [digit * 10.0**power for power in range(floor(low), ceil(high)) for digit in digits]
        inside = [value for value in every if low <= log10(value) <= high]
        if len(inside) >= 3:
            return {"tickvals": inside, "ticktext": [f"{value:g}" for value in inside]}
    return {"nticks": 5, "tickformat": "~r"}


def _kind(report: Mapping[str, Any], trial: Trial) -> str:
    """ "front", or else the trial's state."""
    return "front" if trial["trial"] in {point["trial"] for point in report["front"]} else str(trial["state"])


def _quality(trial: Trial, quality: str) -> Any:
    return (trial.get("metrics") or {}).get(quality)


def _teacher(report: Mapping[str, Any]) -> tuple[float, float, str] | None:
    """Size and quality of the teacher, of a search that has measured it, and the key of its note."""
    known = (report.get("sizes") or {}).get("teacher")
    size = reported_size(known, report["objective"]) if known else None
    value = (report.get("teacher") or {}).get(report["objective"]["quality"])
    return (size, value, "the teacher") if is_number(size) and is_number(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
