"""One image record -> one row: checks the file, turns annotations into run lengths, leaves out what is broken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sam3dist.data.images import encode_image, find_image, read_image, to_rgb
from sam3dist.data.masks import encode_mask, resize_masks, rle_area, rle_box
from sam3dist.data.records import ImageRecord, Question
from sam3dist.data.rejects import Reject
from sam3dist.data.rows import Instance, Prompt, Row
from sam3dist.data.segmentation import annotation_rle, union
from sam3dist.types import Rle

if TYPE_CHECKING:
    from sam3dist.data.settings import PrepareSettings


@dataclass(frozen=True)
class Built:
    row: Row | None
    rejects: tuple[tuple[str, Any, Reject], ...]  # kind, id, verdict


def build_row(record: ImageRecord, images: Path, settings: PrepareSettings) -> Built:
    """The row of one image, or none, and what had to be set aside on the way.

    An image without any usable phrase gives no row and is not a reject: nothing is wrong with it.
    """
    try:
        path = find_image(images, record.file_name)
        encoded, pixels = read_image(path, record.height, record.width, settings.max_pixels)
    except Reject as reject:
        return Built(None, (("image", record.image_id, reject),))
    size = _stored_size(record, settings.max_side)
    rejects: list[tuple[str, Any, Reject]] = []
    prompts = [_prompt(question, record, size, rejects) for question in record.questions]
    known = tuple(prompt for prompt in prompts if prompt is not None)
    if not known:
        return Built(None, tuple(rejects))
    if size != (record.height, record.width):
        smaller = to_rgb(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS)
        encoded = encode_image(smaller, "JPEG" if encoded.startswith(b"\xff\xd8") else "PNG")
    return Built(Row(encoded, record.image_id, record.file_name, *size, known), tuple(rejects))


def _stored_size(record: ImageRecord, max_side: int | None) -> tuple[int, int]:
    longest = max(record.height, record.width)
    if max_side is None or longest <= max_side:
        return record.height, record.width
    height, width = (max(1, round(side * max_side / longest)) for side in (record.height, record.width))
    return height, width


def _prompt(
    question: Question, record: ImageRecord, size: tuple[int, int], rejects: list[tuple[str, Any, Reject]]
) -> Prompt | None:
    """The question with its masks; None where it should have some and none is left to learn from."""
    instances: list[Instance] = []
    crowds: list[Rle] = []
    exhaustive = question.exhaustive
    for annotation in question.annotations:
        try:
            rle = _resized(annotation_rle(annotation, record.height, record.width), size)
        except Reject as reject:
            rejects.append(("annotation", annotation["id"], reject))
            exhaustive = False
            continue
        if not rle_area(rle):  # shrunk to nothing by max_side
            exhaustive = False
        elif annotation.get("iscrowd"):
            crowds.append(rle)
        else:
            instances.append(Instance(rle.counts, rle_box(rle), rle_area(rle)))
    if question.present and not instances:
        return None
    ignore = union(crowds).counts if crowds else None
    return Prompt(question.phrase, question.present, exhaustive, tuple(instances), ignore)


def _resized(rle: Rle, size: tuple[int, int]) -> Rle:
    if size == (rle.height, rle.width):
        return rle
    return encode_mask(resize_masks([rle], *size)[0] >= 0.5)
