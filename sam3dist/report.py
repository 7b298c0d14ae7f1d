"""What a verb leaves for people and scripts: report.json, and report.html that needs nothing but itself."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sam3dist import __version__

PACKAGES = ("torch", "transformers", "ray", "deepspeed", "optuna", "pyarrow", "numpy", "pydantic")


def write_report(run_dir: Path | str, report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as written to run_dir/report.json, with `status`, `run_dir` and `versions` filled in.

    `report` holds at least `verb` and `seconds`. Numbers that are not finite become null, because JSON has none
    of them. To that of a search it adds what follows from the trials (`insights`), unless that is in it, and the cards
    of the students it recommends. run_dir/report.html shows the same with the figures, config.yaml and, of a search,
    search.yaml and the curves of its trials.
    """
    assert {"verb", "seconds"} <= report.keys(), sorted(report)
    directory = Path(run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    first = {"verb": report["verb"], "status": "ok", "run_dir": str(run_dir), "seconds": report["seconds"]}
    complete = jsonable({**first, **report, "versions": versions()})
    write_whole(directory / "report.json", as_text(complete))
    if "trials" in complete and "recommended" not in complete:
        from sam3dist.card import write_cards
        from sam3dist.insight import insights

        complete |= jsonable(insights(complete, directory))
        write_whole(directory / "report.json", as_text(complete))  # again: nothing is lost if the above fails
        write_cards(complete, directory)
    from sam3dist.page import html  # jinja2 is for reports only

    write_whole(directory / "report.html", html(complete, directory))
    return complete


def as_text(report: Mapping[str, Any]) -> str:
    """JSON in lines, which a finite report has."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """The versions a result depends on, of the packages that are installed."""
    found = {"sam3dist": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def jsonable(value: Any) -> Any:
    """The value in JSON's own types; NaN and infinities become None, NumPy and torch scalars plain numbers."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and tensors
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def write_whole(path: Path, text: str) -> None:
    """Write a file at once: who reads meanwhile sees the old one or the new one, never half of one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
