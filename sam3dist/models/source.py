"""Run directories as names of models."""

from __future__ import annotations

import json
from pathlib import Path

from sam3dist.errors import CheckpointError


def resolve(source: str) -> str:
    """The model that a person means: what `load_teacher` takes, or the run directory of `train`, `tune` or `smoke`.

    A run directory stands for the checkpoint that its report names, of a search the best trial's.
    """
    path = Path(source) / "report.json"
    if not path.is_file():
        return source
    try:
        report = json.loads(path.read_text())
        best = report.get("best")
        checkpoint = report.get("checkpoint") or (best.get("checkpoint") if isinstance(best, dict) else None)
    except (ValueError, AttributeError):
        raise CheckpointError(f"{path}: not a report of ours; give the directory of a checkpoint.") from None
    if not checkpoint:
        raise CheckpointError(f"{source}: its report names no checkpoint; give the directory of a checkpoint.")
    found = Path(checkpoint)
    return str(found if found.is_absolute() or found.exists() else Path(source) / found)
