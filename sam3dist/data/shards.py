"""Shards on disk: the manifest, the row groups in it, and their rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sam3dist.data.rejects import Reject
from sam3dist.data.rows import SCHEMA, SCHEMA_VERSION, Row, from_table
from sam3dist.errors import DataError


@dataclass(frozen=True)
class RowGroup:
    """A reference to some rows of a Parquet row group: `part`, `part + parts`, ... of its first `rows` rows.

    A reference is a few bytes: it travels between processes where pixels would be dear. What is left of a row group
    that others have begun is told by the places that are `chosen`, instead.
    """

    path: str
    index: int
    rows: int
    part: int = 0
    parts: int = 1
    chosen: tuple[int, ...] | None = None

    @property
    def places(self) -> range | tuple[int, ...]:
        """Places of the rows within the Parquet row group."""
        return self.chosen if self.chosen is not None else range(self.part, self.rows, self.parts)


@dataclass(frozen=True)
class Shards:
    folder: Path
    manifest: dict[str, Any]
    row_groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.row_groups)

    @property
    def content_hash(self) -> str:
        """SHA-256 over the hashes of all shards: the same rows in the same order give the same."""
        return str(self.manifest["content_sha256"])


def open_shards(folder: Path | str) -> Shards:
    """The shards that `prepare` wrote into a folder; reads the manifest only. Raises DataError."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{path}: schema version {manifest['schema_version']}, this program reads {SCHEMA_VERSION}; "
                "run `sam3dist prepare` again."
            )
        groups = tuple(
            RowGroup(str(path.parent / shard["file"]), index, rows)
            for shard in manifest["shards"]
            for index, rows in enumerate(shard["row_groups"])
        )
    except FileNotFoundError:
        raise DataError(f"{folder}: no manifest.json in it; make shards with `sam3dist prepare`.") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a manifest of shards ({error}); run `sam3dist prepare` again.") from None
    return Shards(Path(folder), manifest, groups)


def read_rows(group: RowGroup) -> list[Row]:
    """The rows of a reference, in the order of `places`; raises Reject where the file cannot be read."""
    table = read_table(group.path, group.index, SCHEMA)
    if table.num_rows < group.rows:
        raise Reject("corrupt shard", f"{table.num_rows} rows where the manifest says {group.rows}")
    rows = from_table(table)
    return [rows[place] for place in group.places]


def num_phrases(shards: Shards, max_images: int | None) -> int:
    """The phrases of the first `max_images` images; None for all. Files that cannot be read have none."""
    if max_images is None:
        return int(shards.manifest["phrases"])
    total = 0
    for group in first_rows(shards.row_groups, max_images):
        with suppress(Reject):  # whoever asks the phrases counts it
            prompts = read_table(group.path, group.index, SCHEMA, ["prompts.list.element.present"]).column("prompts")
            total += len(prompts.slice(0, group.rows).combine_chunks().flatten())
    return total


def read_table(path: str, row_group: int, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """A row group of one of our Parquet files, or these columns of it; raises Reject where it cannot be read."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(schema):
                raise Reject("foreign shard", "its columns are not those of our rows")
            return file.read_row_group(row_group, columns=columns, use_threads=False)
    except Reject:
        raise
    except Exception as error:  # Arrow raises OSError, ArrowInvalid, IndexError and more on damaged files
        raise Reject("corrupt shard", f"{type(error).__name__}: {error}"[:200]) from None


def split_row_groups(groups: Sequence[RowGroup], rank: int, world_size: int) -> list[RowGroup]:
    """The share of one rank: every world_size-th row group, or, where there are few, every n-th row of them.

    All ranks together get every row once. Few large row groups would leave ranks uneven or empty.
    """
    if world_size == 1:
        return list(groups)
    return [piece for piece in _pieces(groups, world_size)[rank::world_size] if piece.places]


def cut(groups: Sequence[RowGroup], workers: int) -> list[RowGroup]:
    """The shares of all ranks, one after the other; DataError where there are fewer rows than workers."""
    rows = sum(group.rows for group in groups)
    if rows < workers:
        raise DataError(
            f"data.train: {rows} rows cannot feed {workers} workers; use more images or a smaller strategy.num_workers."
        )
    if workers == 1:
        return list(groups)
    pieces = _pieces(groups, workers)
    return [piece for rank in range(workers) for piece in pieces[rank::workers] if piece.places]


def _pieces(groups: Sequence[RowGroup], world_size: int) -> Sequence[RowGroup]:
    """The row groups, cut where there are few of them for so many ranks."""
    parts = -(-4 * world_size // max(len(groups), 1)) if len(groups) < 4 * world_size else 1
    if parts == 1:
        return groups
    return [replace(group, part=part, parts=parts) for group in groups for part in range(parts)]


def first_rows(groups: Sequence[RowGroup], rows: int | None) -> list[RowGroup]:
    """References to the first `rows` rows; None for all."""
    chosen: list[RowGroup] = []
    left = sum(group.rows for group in groups) if rows is None else rows
    for group in groups:
        if left <= 0:
            break
        chosen.append(replace(group, rows=min(group.rows, left)))
        left -= group.rows
    return chosen
