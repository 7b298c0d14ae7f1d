"""The Parquet schema: one row is one image with all that is known about the phrases asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa

from sam3dist.types import Rle

SCHEMA_VERSION = 1

_COUNTS = pa.list_(pa.uint32())
_INSTANCE = pa.struct([("counts", _COUNTS), ("box", pa.list_(pa.int32(), 4)), ("area", pa.int64())])
_PROMPT = pa.struct(
    [
        ("phrase", pa.string()),
        ("present", pa.bool_()),
        ("exhaustive", pa.bool_()),
        ("instances", pa.list_(_INSTANCE)),
        ("ignore", _COUNTS),  # null where there is no crowd
    ]
)
SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("prompts", pa.list_(_PROMPT)),
    ]
)


@dataclass(frozen=True)
class Instance:
    counts: np.ndarray  # [runs] uint32
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom excluded
    area: int


@dataclass(frozen=True)
class Prompt:
    """One phrase asked of the image; negatives come last in a row, the most confusable first."""

    phrase: str
    present: bool
    exhaustive: bool  # False: there may be more instances than these
    instances: tuple[Instance, ...]
    ignore: np.ndarray | None  # crowd region as run lengths
    taught: Mapping[str, bytes] = field(default_factory=dict)
    """A teacher's stored answer, by name, where a store of answers was opened with the shards."""

    def with_answer(self, taught: Mapping[str, bytes]) -> Prompt:
        """The same phrase with the teacher's answer; `dataclasses.replace` takes four times as long."""
        return Prompt(self.phrase, self.present, self.exhaustive, self.instances, self.ignore, taught)


@dataclass(frozen=True)
class Row:
    image: bytes  # JPEG or PNG, upright, 8 bits, gray or RGB
    image_id: int
    file_name: str
    height: int
    width: int
    prompts: tuple[Prompt, ...]
    taught: Mapping[str, bytes] = field(default_factory=dict)
    """A teacher's stored features of the image, by name."""

    def rle(self, counts: np.ndarray) -> Rle:
        """A mask of this image from its run lengths."""
        return Rle(self.height, self.width, counts)


def to_table(rows: Sequence[Row]) -> pa.Table:
    """The Arrow table of some rows."""
    records = [
        {
            "image": row.image,
            "image_id": row.image_id,
            "file_name": row.file_name,
            "height": row.height,
            "width": row.width,
            "prompts": [
                {
                    "phrase": prompt.phrase,
                    "present": prompt.present,
                    "exhaustive": prompt.exhaustive,
                    "instances": [{"counts": i.counts, "box": i.box, "area": i.area} for i in prompt.instances],
                    "ignore": prompt.ignore,
                }
                for prompt in row.prompts
            ],
        }
        for row in rows
    ]
    return pa.Table.from_pylist(records, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Row]:
    """The rows of a table, without a Python object per run.

    Arrow's `to_pylist` makes every run length an int, which costs more than decoding the image where masks are
    many; here each mask is a view into the column.
    """
    columns = {name: table.column(name).combine_chunks() for name in SCHEMA.names}
    prompts = columns["prompts"].values
    instances = prompts.field("instances").values
    counts, ignores = _runs(instances.field("counts")), _runs(prompts.field("ignore"))
    boxes = instances.field("box").values.to_numpy().reshape(-1, 4).tolist()
    areas = instances.field("area").to_numpy().tolist()
    made = [Instance(c, tuple(box), area) for c, box, area in zip(counts, boxes, areas, strict=True)]
    ends = prompts.field("instances").offsets.to_numpy()
    asked = [
        Prompt(phrase, present, exhaustive, tuple(made[ends[i] : ends[i + 1]]), ignores[i] if crowd else None)
        for i, (phrase, present, exhaustive, crowd) in enumerate(
            zip(
                prompts.field("phrase").to_pylist(),
                prompts.field("present").to_pylist(),
                prompts.field("exhaustive").to_pylist(),
                prompts.field("ignore").is_valid().to_pylist(),
                strict=True,
            )
        )
    ]
    ends = columns["prompts"].offsets.to_numpy()
    plain = [columns[name].to_pylist() for name in ("image", "image_id", "file_name", "height", "width")]
    return [
        Row(image, number, name, height, width, tuple(asked[start:end]))
        for image, number, name, height, width, (start, end) in zip(*plain, pairwise(ends), strict=True)
    ]


def _runs(lists: pa.ListArray) -> list[np.ndarray]:
    values, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(ends)]
