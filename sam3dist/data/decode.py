"""One row -> the pixels the network sees and the questions of this step. Runs in threads: Pillow lets go of the GIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sam3dist.data.images import damage_as_reject, load_pixels, open_image, to_rgb
from sam3dist.data.masks import flip_rle
from sam3dist.data.rejects import Reject
from sam3dist.data.rows import Prompt, Row
from sam3dist.types import PromptBatch, Rle


@dataclass(frozen=True)
class Asked:
    """A phrase asked of an image, with its masks in the pixels of the image as shown (maybe mirrored)."""

    phrase: str
    present: bool
    exhaustive: bool
    masks: tuple[Rle, ...]
    ignore: Rle | None


@dataclass(frozen=True)
class Sample:
    pixels: np.ndarray  # [3, side, side] uint8
    image_id: int
    size: tuple[int, int]  # original (height, width)
    asked: tuple[Asked, ...]


def decode_row(row: Row, prompts: Sequence[Prompt], side: int, max_pixels: int, flip: bool) -> Sample:
    """The image squashed to side x side, as SAM3 does, with these of its phrases; raises Reject."""
    pixels = decode_image(row.image, (row.height, row.width), side, max_pixels)
    if flip:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    asked = tuple(
        Asked(
            prompt.phrase,
            prompt.present,
            prompt.exhaustive,
            tuple(_mask(row, instance.counts, flip) for instance in prompt.instances),
            None if prompt.ignore is None else _mask(row, prompt.ignore, flip),
        )
        for prompt in prompts
    )
    return Sample(pixels, row.image_id, (row.height, row.width), asked)


def decode_image(data: bytes, size: tuple[int, int], side: int, max_pixels: int) -> np.ndarray:
    """The pixels [3, side, side] uint8 of an encoded image of `size` (height, width); raises Reject."""
    image = open_image(data, max_pixels)
    if image.size != (size[1], size[0]):
        raise Reject("image size", f"{image.size[::-1]} pixels where the row says {size}")
    with damage_as_reject():
        # Lets libjpeg decode at 1/2, 1/4 or 1/8 scale while that is no smaller than wanted: most of the time saved.
        image.draft("RGB", (side, side))
        image = to_rgb(load_pixels(image))
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def collate(samples: Sequence[Sample]) -> PromptBatch:
    """The batch of some samples; phrases in the order of their images."""
    asked = [(index, question) for index, sample in enumerate(samples) for question in sample.asked]
    questions = [question for _, question in asked]
    return PromptBatch(
        images=torch.from_numpy(np.stack([sample.pixels for sample in samples])),
        image_ids=tuple(sample.image_id for sample in samples),
        image_sizes=tuple(sample.size for sample in samples),
        prompts=tuple(question.phrase for question in questions),
        image_of_prompt=torch.tensor([index for index, _ in asked], dtype=torch.int64),
        present=torch.tensor([question.present for question in questions], dtype=torch.bool),
        masks=tuple(question.masks for question in questions),
        ignore=tuple(question.ignore for question in questions),
        exhaustive=torch.tensor([question.exhaustive for question in questions], dtype=torch.bool),
    )


def _mask(row: Row, counts: np.ndarray, flip: bool) -> Rle:
    if counts.sum(dtype=np.int64) != row.height * row.width:
        raise Reject("rle counts", f"runs add up to {counts.sum(dtype=np.int64)} in {row.height} x {row.width}")
    rle = row.rle(counts)
    return flip_rle(rle) if flip else rle
