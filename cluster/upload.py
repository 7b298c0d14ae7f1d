"""The folder of a job, packed for its upload: code and configuration, but neither data nor checkpoints.

What is left out is told by what is in it, not only by its name: people call their folders as they like, and a
forgotten one of shards would be hundreds of megabytes.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from sam3dist.errors import ConfigError

LIMIT_BYTES = DASHBOARD_CLIENT_MAX_SIZE
"""The job server takes no larger package."""
EXCLUDES = (".git", ".venv", "venv", "runs", "shards", "__pycache__", ".*_cache", "*.egg-info", "build", "dist")
"""Left out whatever is in them, as is what .gitignore and .rayignore name."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
LARGEST = 3
"""Folders named where there is too much."""


@dataclass(frozen=True)
class Upload:
    """What of a folder goes to the cluster."""

    folder: Path
    sizes: dict[str, int]
    """Bytes of each file, by its path in the folder."""
    left_out: dict[str, str]
    """What was recognised as data or checkpoints, by its path: "shards", "stored answers", "a run", ..."""

    @property
    def bytes(self) -> int:
        """Size of the package: files as they are, and what a zip file says of each, twice, and of all."""
        return sum(size + 2 * len(path.encode()) + 76 for path, size in self.sizes.items()) + 22

    def has(self, path: str) -> bool:
        """Whether the file, or anything in the folder, of this path is uploaded."""
        return any(known == path or known.startswith(f"{path}/") for known in self.sizes)

    def largest(self) -> list[tuple[str, int]]:
        """The folders with the most bytes, down to the second level, and these bytes."""
        totals = Counter[str]()
        for path, size in self.sizes.items():
            parts = path.split("/")
            totals["/".join(parts[:-1][:2]) or path] += size
        return totals.most_common(LARGEST)


def survey(folder: Path) -> Upload:
    """What of the folder would be uploaded, by the rules of `ray job submit` and by what is recognised.

    ConfigError where it is no folder.
    """
    root = folder.absolute()
    if not root.is_dir():
        raise ConfigError(
            f"submit.working_dir={folder}: no such folder; set it to null where all nodes have the package."
        )
    sizes: dict[str, int] = {}
    left_out: dict[str, str] = {}
    named = _get_excludes(root, list(EXCLUDES))

    def skip(path: Path) -> bool:
        if path == root:
            return False
        if named(path) or _leads_back(path):
            return True
        kind = recognised(path) if path.is_dir() and not _in_package(path, root) else None
        if kind is not None:
            left_out[path.relative_to(root).as_posix()] = kind
        return kind is not None

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    heeded = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    # Ray tells each .gitignore that it reads.
    quiet = logging.getLogger("sam3dist.upload")
    quiet.setLevel(logging.ERROR)
    _dir_travel(root, [skip], note, include_gitignore=heeded, logger=quiet)
    return Upload(root, sizes, left_out)


def pack(upload: Upload, package: Path) -> None:
    """Write the zip file; the same files give the same bytes, which Ray then does not upload again.

    ConfigError, before anything is written, where it is more than Ray takes.
    """
    if upload.bytes >= LIMIT_BYTES:
        most = ", ".join(f"{path} {megabytes(size)}" for path, size in upload.largest())
        raise ConfigError(
            f"submit.working_dir={upload.folder}: {megabytes(upload.bytes)} are above the {megabytes(LIMIT_BYTES)} "
            f"that Ray takes, most of it in {most}; name what need not be uploaded in .rayignore, or set it to null "
            "where all nodes have the package."
        )
    with ZipFile(package, "w") as archive:
        for path in sorted(upload.sizes):
            file = upload.folder / path
            entry = ZipInfo(path)  # of 1980: when it was written does not count
            entry.external_attr = file.stat().st_mode << 16
            archive.writestr(entry, file.read_bytes())


def require_uploaded(upload: Upload, words: Iterable[str]) -> None:
    """ConfigError for a word that names something of the folder that stays here: the job would not find it."""
    for word in words:
        path = Path(word.partition("=")[2] or word)
        # A preset may be called like a folder.
        if path.is_absolute() or ("=" not in word and len(path.parts) < 2):
            continue
        found = Path(os.path.normpath(upload.folder / path))
        if found != upload.folder and found.is_relative_to(upload.folder) and os.path.exists(found):
            inside = found.relative_to(upload.folder)
            if not upload.has(inside.as_posix()):
                over = (known.as_posix() for known in (inside, *inside.parents))
                what = next((upload.left_out[known] for known in over if known in upload.left_out), "left out")
                raise ConfigError(
                    f"{word}: stays on this machine ({what}); give a path that every node of the cluster sees."
                )


def recognised(folder: Path) -> str | None:
    """What of ours, or of a network's weights, a folder holds; None for any other."""
    if {"schema_version", "shards"} <= _json(folder / "manifest.json").keys():
        return "shards"
    if {"teacher", "codec"} <= _json(folder / "store.json").keys():
        return "stored answers"
    if {"verb", "run_dir"} <= _json(folder / "report.json").keys():
        return "a run"
    has = {name: (folder / name).exists() for name in ("config.yaml", "search.yaml", "checkpoints", "history.jsonl")}
    if has["config.yaml"] and (has["search.yaml"] or has["checkpoints"] or has["history.jsonl"]):
        return "a run"
    if (folder / "state.json").is_file() and (folder / "student").is_dir():
        return "a checkpoint"
    if (folder / "config.json").is_file() and any(True for kind in WEIGHTS for _ in folder.glob(kind)):
        return "a network"
    return None


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _leads_back(path: Path) -> bool:
    """Whether a link leads to a folder that it is in."""
    return path.is_symlink() and path.is_dir() and path.parent.resolve().is_relative_to(path.resolve())


def _in_package(path: Path, root: Path) -> bool:
    """Whether a folder belongs to a Python package, and so to its code: ours has a teacher in it."""
    return any((parent / "__init__.py").is_file() for parent in path.parents if root in parent.parents)


def _json(path: Path) -> dict[str, Any]:
    """What a file holds, if it is a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
