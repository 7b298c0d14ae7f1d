"""A teacher's answers on disk: which teacher, data and codec they are of, and the answers to each row.

In the folder, `store.json` says what the answers are of. `answers-00000.parquet` holds those to the rows of
`shard-00000.parquet`, in the same row groups and order; `answers-00000.json`, written after it, has its counts and its
checksum, and without it the file counts as unfinished. `manifest.json`, the very last, makes the store complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from sam3dist.data.rejects import Reject
from sam3dist.data.rows import Prompt, Row
from sam3dist.data.shards import RowGroup, read_table
from sam3dist.errors import DataError
from sam3dist.models.source import file_sha256
from sam3dist.teaching.codec import CODEC_VERSION

STORE, MANIFEST = "store.json", "manifest.json"
DEFAULT_NAME = "answers"
"""Of a store, inside the directory of the shards that it answers."""
COUNTS = ("rows", "pairs", "masks", "answer_bytes", "feature_bytes")
"""What each file of answers counts, and the manifest adds up."""
IMAGE_FEATURES, PROMPT_FEATURES = ("vision",), ("encoder",)

_PROMPT = pa.struct([("answer", pa.binary()), *((name, pa.binary()) for name in PROMPT_FEATURES)])
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("why_not", pa.string()),  # the row could not be used; null for all that have answers
        *((name, pa.binary()) for name in IMAGE_FEATURES),
        ("prompts", pa.list_(_PROMPT)),
    ]
)


@dataclass(frozen=True)
class Identity:
    """What stored answers are of. All of it must be the same for a run that reads them."""

    teacher: str
    """SHA-256 of the teacher's files."""
    precision: str
    """As `teacher.precision` was given; "auto" chose by the device."""
    image_size: int
    """Side in pixels of the images that the teacher saw."""
    data: str
    """SHA-256 of the shards."""
    features: tuple[str, ...]
    """Feature maps stored; a run may ask for fewer."""
    codec: int = CODEC_VERSION
    geometry_token: bool = False
    """Whether a SAM3 was asked as it was trained (models/geometry.py); older stores hold answers without."""


@dataclass(frozen=True)
class RowAnswers:
    """The stored bytes for one row: by name, those of the image, and of each of its prompts ("answer", "encoder")."""

    image_id: int
    why_not: str | None
    image: Mapping[str, bytes]
    prompts: tuple[Mapping[str, bytes], ...]


@dataclass(frozen=True)
class AnswerStore:
    """A complete store, opened for these features. It travels to workers as it is."""

    folder: Path
    identity: Identity
    features: tuple[str, ...]

    def answered(self, group: RowGroup, rows: Sequence[Row]) -> list[Row | Reject]:
        """The rows of a reference with their answers, or the reason why the teacher had none.

        Raises Reject where the answers cannot be read or are those to other rows.
        """
        found = self._read(group)
        if [row.image_id for row in rows] != [answers.image_id for answers in found]:
            raise Reject("foreign answers", f"{self.folder} answers other rows than {Path(group.path).name} holds")
        return [_with(row, answers) for row, answers in zip(rows, found, strict=True)]

    def _read(self, group: RowGroup) -> list[RowAnswers]:
        prompts = ["answer", *(name for name in PROMPT_FEATURES if name in self.features)]
        image = [name for name in IMAGE_FEATURES if name in self.features]
        columns = ["image_id", "why_not", *image, *(f"prompts.list.element.{name}" for name in prompts)]
        path = answers_path(self.folder, Path(group.path).name)
        table = read_table(str(path), group.index, SCHEMA, columns)
        if table.num_rows < group.rows:
            raise Reject("corrupt answers", f"{table.num_rows} rows where the data has {group.rows}")
        prompts_of = table.column("prompts").combine_chunks()
        # Column by column, which takes a quarter of the time of a dict for each answer.
        columns_of = [prompts_of.values.field(name).to_pylist() for name in prompts]
        taught = [dict(zip(prompts, values, strict=True)) for values in zip(*columns_of, strict=True)]
        ends = prompts_of.offsets.to_pylist()
        numbers, reasons = table.column("image_id").to_pylist(), table.column("why_not").to_pylist()
        maps = {name: table.column(name).to_pylist() for name in image}
        return [
            RowAnswers(
                numbers[place],
                reasons[place],
                {name: values[place] for name, values in maps.items()},
                tuple(taught[ends[place] : ends[place + 1]]),
            )
            for place in group.places
        ]


def open_answers(folder: Path | str, wanted: Identity, source: str) -> AnswerStore:
    """The complete store in a folder, if it is of what is `wanted`; else DataError with the reason and the way out.

    source: teacher.source, for the message. wanted.precision "auto" takes answers of any precision.
    """
    folder = Path(folder)
    identity = require_same(folder, wanted, source)
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        raise DataError(f"{folder}: its answers are not complete; run the same `sam3dist teach` again, it goes on.")
    try:
        sizes = {folder / shard["file"]: shard["bytes"] for shard in manifest["shards"]}
    except (KeyError, TypeError):
        raise DataError(
            f"{folder / MANIFEST}: spoilt; run the same `sam3dist teach` again, it mends the store."
        ) from None
    for path, size in sizes.items():
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path}: damaged or gone; run the same `sam3dist teach` again, it mends the store.")
    return AnswerStore(folder, identity, wanted.features)


def require_same(folder: Path, wanted: Identity, source: str) -> Identity:
    """What the store in a folder is of.

    DataError where there is none, or one of another teacher, data, resolution, codec or precision.
    """
    found = read_identity(folder)
    if found is None:
        raise DataError(
            f"{folder}: no stored answers in it; write them with `sam3dist teach`, or use teacher.mode=online."
        )
    reasons = {
        "codec": f"was written by version {found.codec} of the codec, this program reads {wanted.codec}",
        "data": f"answers other shards (content {found.data[:12]}) than data.train (content {wanted.data[:12]})",
        "teacher": f"holds the answers of another teacher ({found.teacher[:12]}) than {source} ({wanted.teacher[:12]})",
        "image_size": f"holds answers at {found.image_size} pixels, this teacher sees {wanted.image_size}",
        "geometry_token": f"holds answers {_asked(found)}, this run asks {_asked(wanted)}",
    }
    way_out = "give another directory in teacher.answers, or remove it, and run `sam3dist teach`."
    for name, reason in reasons.items():
        if getattr(found, name) != getattr(wanted, name):
            raise DataError(f"{folder}: {reason}; {way_out}")
    if wanted.precision not in ("auto", found.precision):
        raise DataError(f"{folder}: holds answers in {found.precision}, not {wanted.precision}; {way_out}")
    missing = [name for name in wanted.features if name not in found.features]
    if missing:
        raise DataError(
            f"{folder}: holds no {' and '.join(missing)} features, which distillation.gamma weighs; {way_out}"
        )
    return found


def _asked(identity: Identity) -> str:
    return "with the geometry token" if identity.geometry_token else "without the geometry token"


def read_identity(folder: Path) -> Identity | None:
    """What the store in a folder is of; None where there is none."""
    known = read_json(folder / STORE)
    if known is None:
        return None
    try:
        return Identity(**{**known, "features": tuple(known["features"])})
    except (TypeError, KeyError):
        raise DataError(f"{folder / STORE}: not of a store of answers; give another directory.") from None


def write_identity(folder: Path, identity: Identity) -> None:
    write_json(folder / STORE, asdict(identity))


def answers_path(folder: Path, shard_file: str) -> Path:
    """The file that answers a shard."""
    return folder / shard_file.replace("shard-", "answers-")


def finished(path: Path) -> dict[str, Any] | None:
    """What a finished file of answers says of itself; None where it is missing, unfinished or damaged."""
    said = read_json(path.with_suffix(".json"))
    if said is None or not path.is_file() or file_sha256(path) != said.get("sha256"):
        return None
    return said


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise DataError(f"{path}: no JSON; remove it and run `sam3dist teach` again.") from None
    if not isinstance(known, dict):
        raise DataError(f"{path}: not of a store of answers; give another directory.")
    return known


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The file, complete or not at all."""
    part = _part(path)
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class AnswerWriter:
    """Writes one file of answers, a row group at a time; nobody takes it for finished before `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = _part(path)
        path.with_suffix(".json").unlink(missing_ok=True)
        # The answers are compressed one by one, so that a step reads only those of the phrases it asks.
        self._writer = pq.ParquetWriter(
            self._part,
            SCHEMA,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )

    def write(self, rows: Sequence[RowAnswers]) -> None:
        """One row group."""
        records = [
            {"image_id": row.image_id, "why_not": row.why_not, **row.image, "prompts": row.prompts} for row in rows
        ]
        self._writer.write_table(pa.Table.from_pylist(records, SCHEMA), row_group_size=max(len(rows), 1))

    def close(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Finish the file; gives what it says of itself."""
        self._writer.close()
        with self._part.open("rb") as file:
            os.fsync(file.fileno())
        said = {
            "file": self.path.name,
            "bytes": self._part.stat().st_size,
            "sha256": file_sha256(self._part),
            **counts,
        }
        self._part.replace(self.path)
        write_json(self.path.with_suffix(".json"), said)
        return said

    def abandon(self) -> None:
        """Remove what was written."""
        self._writer.close()
        self._part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    """Where a file grows before it gets its name; two jobs on one store do not write to the same."""
    return path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")


def _with(row: Row, answers: RowAnswers) -> Row | Reject:
    if answers.why_not is not None:
        return Reject("unanswered", f"the teacher was not asked: {answers.why_not}")
    if len(answers.prompts) != len(row.prompts):
        raise Reject("foreign answers", f"{row.file_name}: {len(answers.prompts)} answers, {len(row.prompts)} phrases")
    prompts = tuple(map(Prompt.with_answer, row.prompts, answers.prompts))
    return replace(row, taught=answers.image, prompts=prompts)
