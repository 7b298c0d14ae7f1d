"""report.json as a page for people: one HTML file with every picture inside, readable on a phone and offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from sam3dist.charts import Chart, as_json, charts, library, trial_notes
from sam3dist.importances import too_few
from sam3dist.tables import NAMES, commands, recommended, tables
from sam3dist.wording import duration, shown

TEMPLATE, SCRIPT = "report.html.j2", "charts.js"
LARGE_BYTES = 300_000
SHOWN_BY = {"pareto": "pareto", "trials": "curves"}
"""Figures that are left out where a chart that answers the pointer shows the same."""

TITLES = {
    "smoke": "Smoke run",
    "prepare": "Data set",
    "teach": "Stored answers",
    "train": "Training",
    "tune": "Search",
    "eval": "Evaluation",
    "compare": "Student against teacher",
    "predict": "Prediction",
    "weights": "Weights",
    "sizes": "Sizes of students",
}


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    data: str  # data: URI
    caption: str
    chart: bool


def html(report: Mapping[str, Any], run_dir: Path) -> str:
    """The page of a report; figures, config.yaml and search.yaml are read from the run directory."""
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    drawn = charts(report, run_dir) if "front" in report else []
    return environment.get_template(TEMPLATE).render(
        title=TITLES.get(report["verb"], report["verb"]),
        name=run_dir.name,
        report=report,
        duration=duration(report["seconds"]),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=list(tiles(report)),
        tables=list(tables(report)),
        pictures=list(pictures(report, run_dir, {chart.name for chart in drawn})),
        recommended=recommended(report),
        commands=commands(report),
        charts=drawn,
        drawing=drawing(report, drawn),
        library=library() if drawn else "",
        script=(folder / SCRIPT).read_text(encoding="utf-8"),
        too_few=too_few(report["trials"]) if drawn else "",
        settings=list(settings(report, run_dir)),
        numbers=[(key, shown(value)) for key, value in flat(report) if not key.startswith("versions.")],
        versions=report["versions"],
    )


def drawing(report: Mapping[str, Any], drawn: Sequence[Chart]) -> dict[str, Any]:
    """What charts.js draws: each chart with the notes of its points, and the notes of the trials."""
    figures = [{"name": chart.name, "figure": as_json(chart), "notes": chart.notes} for chart in drawn]
    return {"charts": figures, "trials": trial_notes(report) if drawn else {}}


def tiles(report: Mapping[str, Any]) -> Iterator[Tile]:
    """The few numbers a reader came for."""
    ratio = report.get("student_over_teacher")
    if ratio is not None:
        yield Tile("Student / teacher", f"{100 * ratio:.1f} %", "mIoU on positives")
    if "front" in report:
        front, quality = report["front"], report["objective"]["quality"]
        best = max((point[quality] or 0 for point in front), default=None)
        yield Tile("Best of the front", "–" if best is None else f"{best:.3f}", NAMES[quality])
        yield Tile("On the front", str(len(front)), f"of {len(report['trials'])} trials")
        yield Tile("Hypervolume", shown(report.get("hypervolume")))
    metrics, before = report.get("metrics"), report.get("before")
    if metrics:
        was = f"untrained {shown(before['miou_all'])}" if before else "all pairs"
        yield Tile("mIoU", shown(metrics.get("miou_all")), was)
        yield Tile("Presence F1", shown(metrics.get("presence_f1")))
    if report.get("params_millions") is not None:
        size = report.get("megabytes") or {}
        yield Tile("Parameters", f"{shown(report['params_millions'])} M", f"{shown(size.get('fp16'))} MB in fp16")
    if "rows" in report:
        counts = ("rows", "phrases", "positives", "negatives", "pairs", "masks")
        yield from (Tile(key.capitalize(), shown(report[key])) for key in counts if key in report)
        yield Tile("Set aside", shown(sum(report["rejected"].values())), "records")
    if "found" in report:
        yield Tile("Instances", str(sum(phrase["instances"] for phrase in report["found"])), report["image"])
    for key, label in (("samples_per_second", "Images per second"), ("pairs_per_second", "Pairs per second")):
        if key in report:
            yield Tile(label, shown(report[key]))
    if "fidelity" in report:
        yield Tile("Bytes per pair", shown(round(report["answer_bytes_per_pair"])), "without features")
        yield Tile("Fidelity", shown(report["fidelity"]["mask_iou"]), "IoU of stored masks with the teacher's")
    if report.get("goodput") is not None:
        use = "asking the teacher" if report["verb"] == "teach" else "in training steps"
        yield Tile("Goodput", f"{100 * report['goodput']:.0f} %", f"of the time {use}")


def settings(report: Mapping[str, Any], run_dir: Path) -> Iterator[tuple[str, str]]:
    """What was asked for: a title and YAML, of a search its ranges first."""
    titles = {"config.yaml": "Configuration"}
    if "front" in report:
        titles = {"search.yaml": "Search", "config.yaml": "Configuration that every trial starts from"}
    for name, title in titles.items():
        file = run_dir / name
        if file.is_file():
            yield title, file.read_text(encoding="utf-8")


def pictures(report: Mapping[str, Any], run_dir: Path, drawn: Container[str] = ()) -> Iterator[Picture]:
    """The figures of the report, inlined, but for those that a chart of the names `drawn` shows.

    Captions: report["captions"] by path, else the name of the file.
    """
    captions = report.get("captions") or {}
    for path in report.get("figures") or ():
        file = run_dir / path
        if SHOWN_BY.get(file.stem) in drawn:
            continue
        kind, data = _packed(file)
        caption = captions.get(path) or file.stem.replace("_", " ").replace("-", " ")
        uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
        yield Picture(uri, caption, chart=file.stem in ("pareto", "trials", "curves"))


def _packed(file: Path) -> tuple[str, bytes]:
    """A picture as it goes into the page: photographs of many megabytes as JPEG, plots as the PNG they are."""
    data = file.read_bytes()
    if len(data) < LARGE_BYTES:
        return "png", data
    out = io.BytesIO()
    with Image.open(file) as picture:
        picture.convert("RGB").save(out, "JPEG", quality=88)
    return "jpeg", out.getvalue()


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings and lists with its dotted path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from flat(item, f"{prefix}.{index}")
    else:
        yield prefix, value
