"""Annotations and images -> Parquet shards with a manifest, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sam3dist.data.build import Built, build_row
from sam3dist.data.coco import coco_records
from sam3dist.data.records import ImageRecord
from sam3dist.data.rejects import Rejects
from sam3dist.data.rows import SCHEMA_VERSION, Row
from sam3dist.data.saco import saco_records
from sam3dist.data.settings import PrepareSettings
from sam3dist.data.shard_writer import ShardWriter
from sam3dist.data.spill import Spill
from sam3dist.data.threads import ordered_map
from sam3dist.errors import DataError

MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
HASHED, READ, PREPARED = "MB of annotations hashed", "MB of annotations read", "images prepared"
"""The parts of the work, by what is counted."""
MB = 10**6
LARGE_MB = 16
"""Of a smaller file nothing is told: it is read within a second."""

Progress = Callable[[str, int, int], None]
"""Told of HASHED, READ or PREPARED with how many are done, and how many there are."""


def prepare(
    instances_json: Path | str,
    images_dir: Path | str,
    out_dir: Path | str,
    settings: PrepareSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The manifest of the shards written to `out_dir`: counts, rejects by reason, shards and their content hash.

    Reads COCO instances, or SA-Co style pairs (images with `text_input`). Records that cannot be used go to
    `rejected.jsonl` with the reason; more of them than `max_rejected_share` raises DataError. The same input gives
    the same shards, byte for byte. A finished directory made from the same annotations and settings is left as
    it is and its manifest returned with "unchanged": True; one made from others raises DataError.
    """
    source, images, out = Path(instances_json), Path(images_dir), Path(out_dir)
    settings = settings or PrepareSettings()
    if not source.is_file():
        raise DataError(f"{source}: no such file; give a COCO instances or SA-Co pairs JSON.")
    if not images.is_dir():
        raise DataError(f"{images}: no such directory; give the folder the file names in {source.name} start from.")
    digest = _sha256(source, _told(HASHED, source, progress))
    origin = {"annotations": source.name, "sha256": digest, "settings": _what_shapes_rows(settings)}
    finished = _finished(out, origin)
    if finished is not None:
        return finished
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="prepare-", suffix=".tmp", dir=out))
    rejects = Rejects(work / REJECTED)
    try:
        manifest = _write_shards(source, images, work, settings, rejects, progress)
        manifest["source"] = origin
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        # The manifest comes last: a directory with one is complete.
        for name in [*(shard["file"] for shard in manifest["shards"]), REJECTED, MANIFEST]:
            (work / name).rename(out / name)
        return manifest
    except DataError:
        rejects.close()
        if rejects.by_reason:
            (work / REJECTED).replace(out / REJECTED)  # what a person needs to mend the data
        raise
    finally:
        rejects.close()
        shutil.rmtree(work, ignore_errors=True)


def _write_shards(
    source: Path,
    images: Path,
    work: Path,
    settings: PrepareSettings,
    rejects: Rejects,
    progress: Progress | None,
) -> dict[str, Any]:
    spill = Spill(source, work / "spill.sqlite", rejects, _told(READ, source, progress))
    try:
        records = (saco_records if spill.pairs else coco_records)(spill, settings, rejects)
        total = spill.num_files() if spill.pairs else spill.num_entries
        writer = ShardWriter(work, settings.rows_per_group, settings.rows_per_shard)
        counts: Counter[str] = Counter()

        def build(record: ImageRecord) -> Built:
            return build_row(record, images, settings)

        for done, built in enumerate(ordered_map(build, records, settings.threads, 4 * settings.threads), 1):
            for kind, name, reject in built.rejects:
                rejects.add(kind, name, reject)
            if built.row is not None:
                writer.add(built.row)
                _count(counts, built.row)
            if progress is not None:
                progress(PREPARED, done, total)
        shards = writer.close()
        for kind, number in (
            ("pair" if spill.pairs else "image", spill.num_entries),
            ("image", total),
            ("annotation", spill.num_annotations),
        ):
            rejects.check(kind, number, settings.max_rejected_share, "max_rejected_share")
        if not counts["rows"]:
            raise DataError(f"{source}: not one image could be used; see {REJECTED} in the output directory.")
    finally:
        spill.close()
    hashes = sorted(shard["sha256"] for shard in shards)
    return {
        "schema_version": SCHEMA_VERSION,
        "format": "saco" if spill.pairs else "coco",
        **{name: counts[name] for name in ("rows", "phrases", "positives", "negatives", "instances")},
        "rejected": dict(sorted(rejects.by_reason.items())),
        "content_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "shards": shards,
    }


def _count(counts: Counter[str], row: Row) -> None:
    positives = sum(prompt.present for prompt in row.prompts)
    counts["rows"] += 1
    counts["phrases"] += len(row.prompts)
    counts["positives"] += positives
    counts["negatives"] += len(row.prompts) - positives
    counts["instances"] += sum(len(prompt.instances) for prompt in row.prompts)


def _finished(out: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a directory that holds the result already; DataError where it holds something else."""
    path = out / MANIFEST
    if path.exists():
        try:
            manifest = json.loads(path.read_text())
            same = manifest["source"] == origin and manifest["schema_version"] == SCHEMA_VERSION
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: not a manifest of shards; give another output directory.") from None
        if not same:
            raise DataError(f"{out}: holds shards of other annotations or settings; give another output directory.")
        return manifest | {"unchanged": True}
    if not out.exists():
        return None
    if not out.is_dir():
        raise DataError(f"{out}: is a file; give a directory for the shards.")
    left = [path for pattern in ("shard-*.parquet", "prepare-*.tmp", REJECTED) for path in out.glob(pattern)]
    foreign = next((path.name for path in out.iterdir() if path not in left), None)
    if foreign is not None:
        raise DataError(f"{out}: holds {foreign!r} and no manifest; give an empty directory for the shards.")
    for path in left:  # of an interrupted run
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    return None


def _what_shapes_rows(settings: PrepareSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name not in ("threads", "max_rejected_share")}


def _told(part: str, file: Path, progress: Progress | None) -> Callable[[int], None]:
    """Takes the bytes of a file that were read so far, and tells of every further megabyte of a large one."""
    last, total = 0, file.stat().st_size // MB

    def tell(done: int) -> None:
        nonlocal last
        if progress is not None and total >= LARGE_MB and done // MB > last:
            last = done // MB
            progress(part, last, total)

    return tell


def _sha256(path: Path, told: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 16):
            digest.update(chunk)
            told(file.tell())
    return digest.hexdigest()
