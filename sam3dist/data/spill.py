"""A temporary SQLite file that groups the records of an annotation file by image.

Annotations come in any order and may outgrow memory; here they wait on disk until their image is asked for.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sam3dist.data.json_stream import stream_object
from sam3dist.data.rejects import Reject, Rejects
from sam3dist.errors import DataError

_TABLES = """
CREATE TABLE images (id INTEGER PRIMARY KEY, place INTEGER, file_name TEXT, record TEXT);
CREATE TABLE annotations (id INTEGER PRIMARY KEY, image INTEGER, category INTEGER, record TEXT);
CREATE TABLE doubts (image INTEGER, category INTEGER);
"""
_INDEXES = """
CREATE INDEX annotations_of ON annotations (image);
CREATE INDEX doubts_of ON doubts (image);
CREATE INDEX images_by_file ON images (file_name, place);
"""


class Spill:
    """The records of one annotation file. An entry of `images` is an image in COCO, a pair in SA-Co files."""

    def __init__(
        self, annotations: Path, database: Path, rejects: Rejects, told: Callable[[int], None] | None = None
    ) -> None:
        """told: called with the bytes read so far."""
        self.heads: dict[str, Any] = {}  # info, categories and whatever else is not images or annotations
        self.pairs = False  # True for SA-Co style: images carry `text_input`
        self.num_entries = self.num_annotations = 0
        self._rejects = rejects
        self._db = sqlite3.connect(database)
        # The file is deleted in the end: nothing needs to survive a crash.
        self._db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-8000;" + _TABLES)
        for key, value, text in stream_object(annotations, {"images", "annotations"}, told):
            if key == "images":
                self._add_entry(value, text)
            elif key == "annotations":
                self._add_annotation(value, text)
            else:
                self.heads[key] = value
        self._db.executescript(_INDEXES)
        if not self.num_entries:
            raise DataError(f"{annotations}: no images in it; give COCO instances or SA-Co style pairs.")
        self._set_dangling_aside()

    def entries(self) -> Iterator[dict]:
        """The records of `images` in file order."""
        for (text,) in self._db.execute("SELECT record FROM images ORDER BY place"):
            yield json.loads(text)

    def entries_by_file(self) -> Iterator[tuple[str, list[dict]]]:
        """The records of `images` that name one file, together; files in the order of their first record."""
        first = "SELECT file_name, MIN(place) AS first FROM images GROUP BY file_name ORDER BY first"
        for name, _ in self._db.execute(first):
            found = self._db.execute("SELECT record FROM images WHERE file_name = ? ORDER BY place", (name,))
            yield name, [json.loads(text) for (text,) in found]

    def num_files(self) -> int:
        return int(self._db.execute("SELECT COUNT(DISTINCT file_name) FROM images").fetchone()[0])

    def annotations(self, entry: int) -> list[dict]:
        """The annotations of one record of `images`, by id."""
        found = self._db.execute("SELECT record FROM annotations WHERE image = ? ORDER BY id", (entry,))
        return [json.loads(text) for (text,) in found]

    def doubts(self, entry: int) -> set[int | None]:
        """Categories of which an annotation of this image was set aside: what is left of them is not all."""
        return {category for (category,) in self._db.execute("SELECT category FROM doubts WHERE image = ?", (entry,))}

    def categories_together(self) -> Iterator[set[int | None]]:
        """For each image, the categories annotated in it."""
        together: set[int | None] = set()
        last = None
        for image, category in self._db.execute("SELECT image, category FROM annotations ORDER BY image"):
            if image != last and together:
                yield together
                together = set()
            last = image
            together.add(category)
        if together:
            yield together

    def close(self) -> None:
        self._db.close()

    def _add_entry(self, record: Any, text: str) -> None:
        self.num_entries += 1
        if self.num_entries == 1:
            self.pairs = isinstance(record, dict) and "text_input" in record
        kind = "pair" if self.pairs else "image"
        try:
            number = record_id(record, "id")
            name = record.get("file_name")
            if not isinstance(name, str) or not name:
                raise Reject("no file name", f"file_name {name!r:.60}")
            try:
                name.encode()
            except UnicodeEncodeError:
                raise Reject("bad characters", f"file_name {name!a:.60} is not Unicode") from None
            row = (number, self.num_entries, name, text)
            if not self._db.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", row).rowcount:
                raise Reject(f"duplicate {kind} id", f"id {number} was there before")
        except Reject as reject:
            self._rejects.add(kind, _name(record), reject)

    def _add_annotation(self, record: Any, text: str) -> None:
        self.num_annotations += 1
        image = category = None
        try:
            number = record_id(record, "id")
            image = record_id(record, "image_id")
            category = record_id(record, "category_id") if "category_id" in record else None  # pairs do without
            row = (number, image, category, text)
            if not self._db.execute("INSERT OR IGNORE INTO annotations VALUES (?, ?, ?, ?)", row).rowcount:
                raise Reject("duplicate annotation id", f"id {number} was there before")
        except Reject as reject:
            self._rejects.add("annotation", _name(record), reject)
            if image is not None:
                self._db.execute("INSERT INTO doubts VALUES (?, ?)", (image, category))

    def _set_dangling_aside(self) -> None:
        without = "SELECT id, image FROM annotations WHERE image NOT IN (SELECT id FROM images)"
        for number, image in self._db.execute(without):
            self._rejects.add("annotation", number, Reject("dangling image id", f"no image has id {image}"))


def record_id(record: Any, key: str) -> int:
    """An integer id that fits 64 bits, or Reject."""
    if not isinstance(record, dict):
        raise Reject("not a record", f"{record!r:.60}")
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise Reject("bad id", f"{key} {value!r:.60} is no integer")
    return value


def _name(record: Any) -> Any:
    value = record.get("id") if isinstance(record, dict) else None
    return value if isinstance(value, int | str) else None
