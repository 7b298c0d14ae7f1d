"""Writes rows into Parquet shards, each complete or not there at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sam3dist.data.rows import SCHEMA, Row, to_table

MAX_GROUP_BYTES = 64 << 20
"""A row group closes early here: what is read at once must fit a worker's memory many times."""

_COMPRESSION = {
    # Images are compressed already; storing them as they are makes reading a plain copy.
    "image": "NONE",
    **dict.fromkeys(("image_id", "file_name", "height", "width"), "ZSTD"),
    **{
        f"prompts.list.element.{leaf}": "ZSTD"
        for leaf in (
            "phrase",
            "present",
            "exhaustive",
            "instances.list.element.counts.list.element",
            "instances.list.element.box.list.element",
            "instances.list.element.area",
            "ignore.list.element",
        )
    },
}


class ShardWriter:
    """Takes rows in order; `close` gives the list of shards for the manifest."""

    def __init__(self, folder: Path, rows_per_group: int, rows_per_shard: int) -> None:
        self.folder, self.rows_per_group, self.rows_per_shard = folder, rows_per_group, rows_per_shard
        self.shards: list[dict[str, Any]] = []
        self._rows: list[Row] = []
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._groups: list[int] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += len(row.image)
        full = sum(self._groups) + len(self._rows) >= self.rows_per_shard
        if full or len(self._rows) >= self.rows_per_group or self._bytes >= MAX_GROUP_BYTES:
            self._end_group()
        if full:
            self._end_shard()

    def close(self) -> list[dict[str, Any]]:
        """{"file", "bytes", "sha256", "row_groups": rows of each} of every shard."""
        self._end_group()
        self._end_shard()
        return self.shards

    def _end_group(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path(".tmp"),
                SCHEMA,
                compression=_COMPRESSION,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            )
        self._writer.write_table(to_table(self._rows), row_group_size=len(self._rows))
        self._groups.append(len(self._rows))
        self._rows, self._bytes = [], 0

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        with self._path(".tmp").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._path(".tmp").rename(self._path())
        size = self._path().stat().st_size
        self.shards.append({"file": self._path().name, "bytes": size, "sha256": digest, "row_groups": self._groups})
        self._writer, self._groups = None, []

    def _path(self, suffix: str = "") -> Path:
        return self.folder / f"shard-{len(self.shards):05d}.parquet{suffix}"
