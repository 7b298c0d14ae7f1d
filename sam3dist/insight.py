"""What follows from the trials of a search: whom to train in full, what mattered, how it went, why nothing came."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3dist.config.plain import read_yaml
from sam3dist.errors import ConfigError
from sam3dist.importances import importances
from sam3dist.knobs import is_number
from sam3dist.objective import hypervolume, searched_size

LIMITS_MB = (25, 50, 100, 200)
"""Megabytes that people have for a model, on phones and elsewhere."""
LONGER = 10
"""Full training of a trial is so many times its steps, where the preset of its search does not ask for more."""
MOST_REASONS, MOST_LETTERS = 3, 200

Trial = Mapping[str, Any]


def insights(report: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """`recommended`, `importances`, `progress` and `why_empty` of the report of a search, for report.json.

    From run_dir come search.yaml and the configurations of trials, for the commands; they may be missing.
    """
    trials, quality = report["trials"], report["objective"]["quality"]
    done = [trial for trial in trials if trial["state"] == "done"]
    found = recommendations(trials, quality, report["objective"].get("precision", "int4"))
    for row in found:
        row["command"] = None if row["trial"] is None else command(row["trial"], report["run_dir"], run_dir, trials)
    return {
        "recommended": found,
        "importances": importances(done, quality),
        "progress": progress(trials, quality, report.get("reference_size") or report.get("reference_millions")),
        "why_empty": "" if report["front"] else why_empty(trials, quality),
    }


def recommendations(
    trials: Iterable[Trial], quality: str, precision: str = "int4", limits: Sequence[float] = LIMITS_MB
) -> list[dict[str, Any]]:
    """For each limit in MB the done trial of the best quality whose weights fit it at this precision.

    Of equal ones the smaller. Where none fits, `trial` and what belongs to it are None; `smallest` names in any case
    the smallest trial and its megabytes, or is None where no trial is done. The quality is that of the student as it
    was trained, not of a quantised one, which nobody has measured.
    """
    done = [
        (trial["metrics"][quality], trial["megabytes"][precision], trial)
        for trial in trials
        if trial["state"] == "done"
        and is_number((trial.get("metrics") or {}).get(quality))
        and is_number((trial.get("megabytes") or {}).get(precision))
    ]
    least = min(done, key=lambda one: (one[1], -one[0]), default=None)
    smallest = least and {"trial": least[2]["trial"], "megabytes": least[1]}
    rows = []
    for limit in limits:
        fitting = [one for one in done if one[1] <= limit]
        row: dict[str, Any] = {"limit_mb": limit, "precision": precision}
        row |= dict.fromkeys(("trial", "quality", "params_millions", "megabytes", "checkpoint"))
        if fitting:
            value, size, best = max(fitting, key=lambda one: (one[0], -one[1]))
            row |= {"trial": best["trial"], "quality": value, "megabytes": size}
            row |= {key: best.get(key) for key in ("params_millions", "checkpoint")}
        rows.append(row | {"smallest": smallest})
    return rows


def none_fits(row: Mapping[str, Any]) -> str:
    """What to say of a row of `recommendations` that names no trial."""
    least = row["smallest"]
    if least is None:
        return "no trial is done"
    return f"none; the smallest, {least['trial']}, has {least['megabytes']:.3g} MB"


def command(trial: str, shown_dir: str, run_dir: Path, trials: Iterable[Trial]) -> str:
    """The command that trains a trial's student in full, to be copied into a shell.

    shown_dir: the run directory as people gave it. The steps are those of the preset that the search started from,
    if they are more than the trial's, else ten times the trial's.
    """
    row = next(row for row in trials if row["trial"] == trial)
    config = _yaml(run_dir / "trials" / trial / "config.yaml")
    words = ["sam3dist", "train", f"{shown_dir}/trials/{trial}/config.yaml", f"run.dir={shown_dir}-{trial}-full"]
    made = row.get("step") or (config.get("optim") or {}).get("steps")
    if made:
        asked = _steps_of_preset(run_dir)
        words.append(f"optim.steps={asked if asked > made else LONGER * made}")
    stored = (config.get("checkpoint") or {}).get("storage_path")
    if stored:
        place, mark, query = stored.partition("?")
        words.append(f"checkpoint.storage_path={place}-full{mark}{query}")  # the trial's own is taken
    return shlex.join(words)


def _steps_of_preset(run_dir: Path) -> int:
    """optim.steps of the preset in search.yaml, before the search cut them short; 0 if that is not known."""
    preset = _yaml(run_dir / "search.yaml").get("preset")
    if not isinstance(preset, str):
        return 0
    shipped = Path(__file__).parent / "config" / "presets" / f"{preset}.yaml"
    steps = (_yaml(shipped if shipped.is_file() else Path(preset)).get("optim") or {}).get("steps")
    return steps if isinstance(steps, int) else 0


def _yaml(path: Path) -> dict[str, Any]:
    """What the file says; nothing if it cannot be read."""
    try:
        return read_yaml(path)
    except ConfigError:
        return {}


def progress(trials: Iterable[Trial], quality: str, reference: float | None) -> list[dict[str, Any]]:
    """The hypervolume after each trial that was done or stopped: {trial, finished, hours, hypervolume}.

    In the order in which they ended; `finished` counts them, `hours` are those since the first trial began. Only done
    trials add to the hypervolume, the last of which is therefore that of the whole search. Trials that do not say when
    they ran (`hours` is None) keep the order of their names. Empty without `reference`, the size of the teacher.
    """
    if not reference:
        return []
    over = [trial for trial in trials if trial["state"] in ("done", "stopped")]
    began = min((trial["began"] for trial in over if is_number(trial.get("began"))), default=0.0)

    def hours(trial: Trial) -> float | None:
        known = is_number(trial.get("began")) and is_number(trial.get("wall_seconds"))
        return (trial["began"] + trial["wall_seconds"] - began) / 3600 if known else None

    ends = {trial["trial"]: hours(trial) for trial in over}
    if None not in ends.values():
        over.sort(key=lambda trial: ends[trial["trial"]] or 0.0)
    points: list[tuple[float, float]] = []
    rows = []
    for finished, trial in enumerate(over, 1):
        value = (trial.get("metrics") or {}).get(quality)
        size = searched_size(trial)
        if trial["state"] == "done" and is_number(value) and is_number(size):
            points.append((value, size))
        area = hypervolume(points, (0.0, reference), log_size=True)
        name = trial["trial"]
        rows.append({"trial": name, "finished": finished, "hours": ends[name], "hypervolume": area})
    return rows


def why_empty(trials: Iterable[Trial], quality: str | None = None) -> str:
    """Why nothing is on the front, in one line: how many trials ended in which state, and the usual reasons.

    quality: the metric that was searched for, to be named where trials are done but did not measure it. Reasons that
    differ in their numbers only count as one, and the first stands for all.
    """
    rows = list(trials)
    if not rows:
        return "The front is empty: no trial was started."
    states = Counter(str(row["state"]) for row in rows)
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    done = states["done"]
    if done:
        named = f" {quality}" if quality else " quality"
        text = f"The front is empty, because no trial that was done has a finite{named}: {counted}."
    else:
        text = f"The front is empty, because no trial was trained to its end: {counted}."
    told = [str(row["reason"]) for row in rows if row["state"] in ("failed", "refused") and row.get("reason")]
    alike: dict[str, list[str]] = {}
    for reason in told:
        alike.setdefault(re.sub(r"\d+(\.\d+)?", "0", reason), []).append(reason)
    usual = sorted(alike.values(), key=len, reverse=True)[:MOST_REASONS]
    if usual:
        said = "; ".join(f"{len(same)}× {_cut(same[0])}" for same in usual)
        text += f" Reasons: {said}"
    elif states["stopped"] and not done:
        text += " Trials are stopped where they are behind others; asha.enabled=false trains all of them to their end."
    return text


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_LETTERS else line[: MOST_LETTERS - 1] + "…"
