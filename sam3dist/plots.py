"""Trials as points of quality and size, and a run as curves over its steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3dist.knobs import is_number
from sam3dist.objective import searched_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GREY, FAINT = "#1f2933", "#6b7785", "#b8c0ca", "#dfe4ea"
TEACHER, STUDENT = "#2176ff", "#ff6b1a"
"""The teacher is blue and the student orange wherever they are drawn."""
SERIES = ("#2176ff", "#ff6b1a", "#00a67d", "#9b5de5", "#e4a700", "#00a8c6")

TITLES = {
    "miou_all": "mIoU, all pairs",
    "miou_positive": "mIoU, positive pairs",
    "dice": "Dice",
    "presence_f1": "presence F1",
    "cgf1": "cgF1",
}
LOSSES = ("total", "task", "distillation", "feature")
MOST_NAMED = 2 * len(SERIES)
"""Trials with a colour of their own: each colour solid, then dashed."""


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib in the look of all our figures, inside only."""
    import matplotlib

    look: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "legend.frameon": False,
        "hatch.linewidth": 0.8,
        "hatch.color": FAINT,
    }
    with matplotlib.rc_context(look):
        yield


def save(figure: Figure, path: Path) -> Path:
    """`path`, with the figure as PNG; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, facecolor="white")
    return path


def pareto_plot(
    trials: Sequence[Mapping[str, Any]],
    front: Sequence[str],
    *,
    quality: str,
    path: Path,
    teacher: Mapping[str, Any] | None = None,
    size: str = "parameters (millions)",
) -> Path:
    """`path`, with every trial as a point: quality upwards, size on a log axis to the right.

    trials: as in report.json, {"trial", "state", "metrics", "size"}; a state "stopped" is drawn hollow, and a trial
    that has not measured `quality` is left out. front: names of the trials on the Pareto front; they are joined,
    labelled and coloured. teacher: its "metrics" and "size", drawn as a star. size: what that is.
    """
    from matplotlib.figure import Figure

    on_front = set(front)
    assert on_front <= {trial["trial"] for trial in trials}, on_front
    points = [
        (searched_size(trial), trial["metrics"][quality], trial)
        for trial in trials
        if is_number((trial.get("metrics") or {}).get(quality)) and is_number(searched_size(trial))
    ]
    best = sorted((x, value, trial["trial"]) for x, value, trial in points if trial["trial"] in on_front)
    others = [(x, value, trial) for x, value, trial in points if trial["trial"] not in on_front]
    with styled():
        figure = Figure(figsize=(8.4, 5.4), layout="constrained")
        axis = figure.subplots()
        for hollow, name in ((False, "beaten by another"), (True, "stopped early")):
            chosen = [(s, v) for s, v, trial in others if (trial.get("state") == "stopped") is hollow]
            if chosen:
                xs, ys = zip(*chosen, strict=True)
                face = "white" if hollow else GREY
                axis.scatter(xs, ys, s=42, facecolor=face, edgecolor="#a3adb8", linewidth=1.2, label=name)
        for x, value, _ in best:
            axis.scatter(x, value, s=84, color=STUDENT, edgecolor="white", linewidth=1.4, zorder=4)
        sizes = [x for x, _, _ in points]
        if teacher is not None and is_number(teacher["metrics"].get(quality)) and is_number(searched_size(teacher)):
            star = (searched_size(teacher), teacher["metrics"][quality])
            sizes.append(star[0])
            axis.scatter(*star, s=340, marker="*", color=TEACHER, edgecolor="white", linewidth=1.2, zorder=5)
            _label(axis, "teacher", star, (0, 13), ha="center", color=TEACHER, weight="bold")
            axis.axhline(star[1], color=TEACHER, linewidth=1, linestyle=(0, (2, 4)), zorder=1)
        axis.margins(y=0.16)
        _size_axis(axis, sizes, size)
        if best:
            _front_line(axis, [x for x, _, _ in best], [value for _, value, _ in best])
            _front_labels(axis, best)
        axis.set_ylabel(TITLES.get(quality, quality))
        axis.set_title(f"Quality against size: {len(best)} of {len(trials)} trials are on the front")
        if others or best:
            handles, names = axis.get_legend_handles_labels()
            axis.legend(handles[::-1], names[::-1], loc="lower right", handletextpad=0.4)
        return save(figure, path)


def curves(history: Sequence[Mapping[str, Any]], *, path: Path, title: str = "") -> Path:
    """`path`, with the losses of the steps of kind "train" at the left and the metrics of kind "eval" at the right.

    history: the lines of history.jsonl. Values that are null or not finite are left out of their line. The
    evaluation before the first step is step 0.
    """
    from matplotlib.figure import Figure

    losses = {name: points_of(history, "train", f"loss/{name}") for name in LOSSES}
    # A term whose weight is 0 is 0 at every step: no line.
    losses = {name: points for name, points in losses.items() if any(value for _, value in points)}
    metrics = {name: points_of(history, "eval", key) for key, name in TITLES.items()}
    with styled():
        figure = Figure(figsize=(11.5, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _lines(left, losses, "Training loss", markers=False)
        values = [value for points in losses.values() for _, value in points]
        if values and min(values) > 0 and max(values) > 15 * min(values):
            left.set_yscale("log")
            _plain_numbers(left.yaxis)
        _lines(right, metrics, "Validation", markers=True)
        if any(metrics.values()):
            right.set_ylim(-0.02, 1.02)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=13, weight="bold")
        return save(figure, path)


def trial_curves(
    trials: Sequence[Mapping[str, Any]],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    quality: str,
    path: Path,
    teacher: Mapping[str, Any] | None = None,
) -> Path:
    """`path`, with the quality of each trial over its steps, and a cross where it was stopped early.

    histories: the lines of history.jsonl by trial. The best by their last value are named and coloured, all others
    grey. trials, teacher: as for `pareto_plot`; the teacher is a line across.
    """
    from matplotlib.figure import Figure

    stopped = {trial["trial"] for trial in trials if trial["state"] == "stopped"}
    found = {name: points_of(history, "eval", quality) for name, history in histories.items()}
    ranked = sorted(((name, points) for name, points in found.items() if points), key=lambda item: -item[1][-1][1])
    with styled():
        figure = Figure(figsize=(8.4, 4.8), layout="constrained")
        axis = figure.subplots()
        for place, (name, points) in enumerate(ranked):
            steps, values = zip(*points, strict=True)
            look: dict[str, Any] = {"color": GREY, "linewidth": 1, "zorder": 2}
            if place < MOST_NAMED:
                style = "solid" if place < len(SERIES) else "dashed"
                look = {"color": SERIES[place % len(SERIES)], "linewidth": 1.8, "linestyle": style, "zorder": 3}
                look["label"] = f"{name}  {values[-1]:.3f}{'  stopped' if name in stopped else ''}"
            elif place == MOST_NAMED:
                look["label"] = f"{len(ranked) - MOST_NAMED} others"
            axis.plot(steps, values, **look)
            axis.plot(steps[-1], values[-1], marker="x" if name in stopped else "o", markersize=5, color=look["color"])
        if teacher is not None and is_number(teacher["metrics"].get(quality)):
            height = teacher["metrics"][quality]
            axis.axhline(height, color=TEACHER, linewidth=1, linestyle=(0, (2, 4)), label=f"teacher  {height:.3f}")
        axis.set_xlabel("step")
        axis.set_ylabel(TITLES.get(quality, quality))
        axis.set_title("Quality of each trial as it trains")
        if ranked:
            axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="trial, last value", alignment="left")
        return save(figure, path)


def _front_line(axis: Axes, sizes: list[float], values: list[float]) -> None:
    """The front as steps, because between two trials there is nothing one could deploy, over what it beats."""
    (_, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    xs, ys = [*sizes, right], [*values, values[-1]]
    axis.step(xs, ys, where="post", color=STUDENT, linewidth=2, alpha=0.55, zorder=3, label="Pareto front")
    axis.fill_between(xs, ys, bottom, step="post", color=STUDENT, alpha=0.06, zorder=0)
    axis.set_ylim(bottom, top)


def _front_labels(axis: Axes, best: list[tuple[float, float, str]]) -> None:
    """Each name up and to the left of its point, or down and to the right where the last one is in the way."""
    before_x = before_y = -1e9
    for size, value, name in best:
        x, y = axis.transData.transform((size, value))  # pixels
        if x - before_x < 7 * len(name) and y - before_y < 16:
            _label(axis, name, (size, value), (8, -13), ha="left", color=INK, fontsize=9)
        else:
            _label(axis, name, (size, value), (-6, 8), ha="right", color=INK, fontsize=9)
            before_x, before_y = x, y


def _label(axis: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Text beside a point, with a white rim where it crosses others."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=3, foreground="white")]
    axis.annotate(text, point, offset, textcoords="offset points", path_effects=rim, zorder=6, **look)


def _size_axis(axis: Axes, sizes: list[float], title: str) -> None:
    axis.set_xscale("log")
    axis.set_xlabel(title)
    if sizes:
        low, high = log10(min(sizes)), log10(max(sizes))
        room = max(0.12, 0.12 * (high - low))
        axis.set_xlim(10 ** (low - room), 10 ** (high + room))
    _plain_numbers(axis.xaxis)


def _plain_numbers(axis: Any) -> None:
    """1, 2, 5, 10 on a log axis, not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _lines(axis: Axes, series: Mapping[str, list[tuple[float, float]]], title: str, *, markers: bool) -> None:
    axis.set_title(title)
    axis.set_xlabel("step")
    drawn = {name: points for name, points in series.items() if points}
    for (name, points), color in zip(drawn.items(), SERIES, strict=False):
        steps, values = zip(*points, strict=True)
        axis.plot(
            steps,
            values,
            color=color,
            linewidth=2.4 if name == "total" else 1.8,
            marker="o" if markers else None,
            markersize=4.5,
            markeredgecolor="white",
            label=f"{name}  {values[-1]:.3g}",
        )
    if drawn:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="last value", alignment="left")
    else:
        axis.text(0.5, 0.5, "nothing was logged", transform=axis.transAxes, ha="center", color=MUTED)


def points_of(history: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[tuple[float, float]]:
    """(step, value) of each line of this kind that has a finite value of this name."""
    return [(line["step"], line[name]) for line in history if line["kind"] == kind and is_number(line.get(name))]
