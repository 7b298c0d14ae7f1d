"""Where models are kept: run directories as their names, and the checksums of their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from sam3dist.errors import CheckpointError


def resolve(source: str) -> str:
    """The model that a person means: what `load_teacher` takes, or the run directory of `train`, `tune` or `smoke`.

    A run directory stands for the checkpoint that its report names, of a search the best trial's; one that was moved
    or copied from elsewhere for the same checkpoint in its new place. CheckpointError where it is in neither. A
    network with a report beside it, as `weights` writes, is that network.
    """
    path = Path(source) / "report.json"
    if not path.is_file() or (Path(source) / "config.json").is_file():
        return source
    try:
        report = json.loads(path.read_text())
        best = report.get("best")
        checkpoint = report.get("checkpoint") or (best.get("checkpoint") if isinstance(best, dict) else None)
    except (ValueError, AttributeError):
        raise CheckpointError(f"{path}: not a report of ours; give the directory of a checkpoint.") from None
    if not checkpoint:
        raise CheckpointError(f"{source}: its report names no checkpoint; give the directory of a checkpoint.")
    named = Path(checkpoint)
    # The report knows where the directory was when it was written: the longest end of that path is looked for here.
    ends = (Path(*named.parts[start:]) for start in range(int(named.is_absolute()), len(named.parts)))
    for found in (named, *(Path(source) / end for end in ends)):
        if found.exists():
            return str(found)
    raise CheckpointError(
        f"{source}: its report names {checkpoint}, which is gone; give the directory of a checkpoint."
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def files_sha256(files: Iterable[Path]) -> str:
    """SHA-256 of the names and the content of files, wherever they lie; OSError where one cannot be read."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name}\n{file_sha256(file)}\n".encode())
    return whole.hexdigest()
