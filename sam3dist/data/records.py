"""What the two annotation formats have in common: an image, and the questions asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sam3dist.data.rejects import Reject


@dataclass(frozen=True)
class Question:
    """One phrase with the raw annotations that answer it; `present` without annotations is left out of the rows."""

    phrase: str
    present: bool
    exhaustive: bool
    annotations: tuple[dict, ...] = ()


@dataclass(frozen=True)
class ImageRecord:
    """One image file; `height` and `width` are what the annotations refer to."""

    image_id: int
    file_name: str
    height: int
    width: int
    questions: tuple[Question, ...]  # negatives last, the most confusable first


def annotated_size(record: dict) -> tuple[int, int]:
    """(height, width) of an image record; raises Reject where they are no positive integers."""
    height, width = record.get("height"), record.get("width")
    if not all(type(side) is int and 0 < side < 2**31 for side in (height, width)):
        raise Reject("bad size", f"height {height!r:.30}, width {width!r:.30}")
    assert isinstance(height, int)
    assert isinstance(width, int)
    return height, width


def integers(value: Any) -> set[int]:
    """The integers of a list or of an object's keys, as annotation files write sets of category ids."""
    if not isinstance(value, list | dict):
        return set()
    texts = (str(item) for item in value)
    return {int(text) for text in texts if text.lstrip("-").isdecimal()}
