"""The tables of a report's page, and what readers call its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sam3dist.insight import none_fits
from sam3dist.knobs import short_names
from sam3dist.wording import shown

NAMES = {
    "miou_all": "mIoU, all pairs",
    "miou_positive": "mIoU, positives",
    "dice": "Dice",
    "presence_precision": "Presence precision",
    "presence_recall": "Presence recall",
    "presence_f1": "Presence F1",
    "presence_head_f1": "Presence F1, head alone",
    "cgf1": "cgF1",
    "pmf1": "pmF1",
    "il_mcc": "IL-MCC",
    "params_millions": "Parameters (millions)",
    "num_pairs": "Pairs",
    "num_positive": "Positive pairs",
    "num_negative": "Negative pairs",
    "num_maskless": "Positives that are all crowd",
    "num_nonfinite": "Pairs answered with NaN",
    "student_over_teacher": "Student / teacher",
    "samples_per_second": "Images per second",
    "pairs_per_second": "Pairs per second",
    "answer_bytes_per_pair": "Bytes per pair, without features",
    "bytes_per_pair": "Bytes per pair",
    "bytes_per_image": "Bytes per image",
    "mask_iou": "IoU of stored masks with the teacher's",
    "score_kl": "KL of stored scores from the teacher's",
}
"""What readers call the numbers; others are shown under their keys."""

REJECTED = {
    "prepare": "Each is named in rejected.jsonl.",
    "teach": "These rows have no answers; training sets them aside, too.",
    "train": "A row that cannot be used counts once in each epoch.",
}
"""What a verb says below the table of what it set aside."""


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]
    marked: frozenset[int] = frozenset()  # rows to stand out
    note: str = ""


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The tables that the report has content for."""
    answers = {"before": "untrained", "metrics": "trained", "student": "student", "teacher": "teacher"}
    given = [key for key in answers if report.get(key)]
    if given:
        names = ["value"] if given == ["metrics"] else [answers[key] for key in given]
        rows = [
            [NAMES.get(str(metric), str(metric)), *(shown(report[key].get(metric)) for key in given)]
            for metric in report[given[-1]]
        ]
        yield Table("Quality", ["", *names], rows)
    trained_anew = finalists(report)
    if trained_anew is not None:
        yield trained_anew
    if "front" in report:
        yield _trials(report)
    if report.get("megabytes"):
        yield Table("Size in MB", list(report["megabytes"]), [[shown(mb) for mb in report["megabytes"].values()]])
    if report.get("rejected"):
        rows = [[reason, shown(count)] for reason, count in report["rejected"].items()]
        yield Table("Set aside", ["because of", "records"], rows, note=REJECTED.get(report["verb"], ""))
    if "found" in report:
        rows = [
            [phrase["phrase"], shown(phrase["instances"]), ", ".join(f"{score:.2f}" for score in phrase["scores"])]
            for phrase in report["found"]
        ]
        yield Table("Found", ["phrase", "instances", "scores"], rows)
    if "compositions" in report:
        yield _compositions(report["compositions"])


def finalists(report: Mapping[str, Any]) -> Table | None:
    """The students of the front that were trained anew, with what they reached over the seeds; None without any."""
    if not report.get("finalists"):
        return None
    quality = report["objective"]["quality"]
    rows = [
        [
            str(one["trial"]),
            shown(one["of_the_search"]),
            shown(one["mean"]),
            shown(one["std"]),
            " ".join(shown((run.get("metrics") or {}).get(quality)) for run in one["runs"]),
            shown(one["params_millions"]),
        ]
        for one in report["finalists"]
    ]
    columns = ["trial", f"{NAMES[quality]}, in the search", "mean", "deviation", "by seed", "params (M)"]
    return Table("Finalists", columns, rows, note="Trained anew, each from several seeds.")


def _trials(report: Mapping[str, Any]) -> Table:
    """All trials, best first by the quality that was searched for, those on the front marked."""
    on_front = {point["trial"] for point in report["front"]}
    quality = report["objective"]["quality"]
    keys = sorted({key for trial in report["trials"] for key in trial["config"]})
    trials = sorted(report["trials"], key=lambda trial: -((trial.get("metrics") or {}).get(quality) or 0))
    rows = [
        [
            str(trial["trial"]),
            str(trial["state"]).lower(),
            shown((trial.get("metrics") or {}).get(quality)),
            shown(trial.get("params_millions")),
            *(shown(trial["config"].get(key)) for key in keys),
        ]
        for trial in trials
    ]
    columns = ["trial", "state", NAMES[quality], "params (M)", *short_names(keys).values()]
    marked = frozenset(index for index, trial in enumerate(trials) if trial["trial"] in on_front)
    note = "Highlighted: on the Pareto front, so no other trial is better and smaller." if on_front else ""
    return Table("Trials", columns, rows, marked, note)


def recommended(report: Mapping[str, Any]) -> Table | None:
    """The student to train in full for each limit of size; None for a report without."""
    rows = report.get("recommended") or []
    if not any(row["smallest"] for row in rows):
        return None
    precision = rows[0]["precision"]
    quality = report["objective"]["quality"]
    cells = [
        [
            f"{row['limit_mb']:g}\N{NO-BREAK SPACE}MB",
            none_fits(row) if row["trial"] is None else row["trial"],
            shown(row["quality"]),
            shown(row["params_millions"]),
            shown(row["megabytes"]),
        ]
        for row in rows
    ]
    columns = ["up to", "trial", NAMES[quality], "params (M)", f"MB in {precision}"]
    note = (
        f"The best done trial whose weights fit the limit in {precision}. Sizes are counted; the quality is that of "
        f"the student as trained, not in {precision}. recommended/ has a model card of each."
    )
    return Table("Recommended students", columns, cells, note=note)


def commands(report: Mapping[str, Any]) -> dict[str, str]:
    """By trial, the commands that train the recommended students in full."""
    return {row["trial"]: row["command"] for row in report.get("recommended") or () if row["trial"] is not None}


def _compositions(students: list[Mapping[str, Any]]) -> Table:
    """One student a row: what it is made of, its parameters by part, its megabytes and its operations."""
    sides, parts, kinds = ("name", "vision", "text"), ("vision", "text", "head"), ("fp32", "fp16", "int8", "int4")
    rows = [
        [
            *(str(one[side]) for side in sides),
            shown(one["image_size"]),
            *(shown(one["size"]["parts"][part]) for part in parts),
            shown(one["size"]["params_millions"]),
            *(shown(one["size"]["megabytes"][kind]) for kind in kinds),
            *(shown(one["gigaflops"][part]) for part in parts),
        ]
        for one in students
    ]
    columns = ["student", "vision", "text", "pixels", *(f"{part} (M)" for part in parts), "total (M)"]
    columns += [*(f"{kind} (MB)" for kind in kinds), *(f"{part} (GFLOPs)" for part in parts)]
    marked = frozenset(index for index, one in enumerate(students) if any(one["under_50_mb"].values()))
    return Table("Students", columns, rows, marked, note="Highlighted: under 50 MB in int8 or int4.")
