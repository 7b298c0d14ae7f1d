"""One row -> the pixels the network sees and the questions of this step. Runs in threads: Pillow lets go of the GIL."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from PIL.ImageEnhance import Brightness, Color, Contrast
from torch import Tensor

from sam3dist.data.images import damage_as_reject, load_pixels, open_image, to_rgb
from sam3dist.data.masks import Window, crop_rle, flip_rle
from sam3dist.data.rejects import Reject
from sam3dist.data.rows import Prompt, Row
from sam3dist.teaching.codec import Answer, Maps, decode_answer, decode_maps, stack_answers
from sam3dist.types import CodedAnswers, PromptBatch, Rle

# Pillow's pixels are read-only, and only read.
warnings.filterwarnings("ignore", category=UserWarning, message="The given NumPy array is not writable")


@dataclass(frozen=True)
class View:
    """How a training step looks at an image."""

    window: Window | None = None  # what it sees of the image; None is all
    flip: bool = False
    colours: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of brightness, contrast and saturation


PLAIN = View()


@dataclass(frozen=True)
class Asked:
    """A phrase asked of an image, with its masks in the pixels of the image as shown (maybe mirrored)."""

    phrase: str
    present: bool
    exhaustive: bool
    masks: tuple[Rle, ...]
    ignore: Rle | None
    answer: Answer | None = None
    """What the teacher said, in the image as shown, where its answers are stored."""
    features: Mapping[str, Maps] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    pixels: Tensor  # [3, side, side] uint8
    image_id: int
    size: tuple[int, int]  # original (height, width)
    asked: tuple[Asked, ...]
    features: Mapping[str, Maps] = field(default_factory=dict)
    """The teacher's features of the image as shown, where they are stored."""
    batch: Tensor | None = None
    """The images of the batch in which `pixels` has its place, where it has one."""


def decode_row(row: Row, prompts: Sequence[Prompt], side: int, max_pixels: int, view: View = PLAIN) -> Sample:
    """What is seen of the image, squashed to side x side as SAM3 does, with these of its phrases; raises Reject."""
    return with_pixels(row, decode_questions(row, prompts, view), side, max_pixels, view)


def decode_questions(row: Row, prompts: Sequence[Prompt], view: View = PLAIN) -> tuple[Asked, ...]:
    """These phrases of an image with their masks and, where they are stored, the teacher's answers; raises Reject.

    In a window, a phrase whose things lie outside names nothing, or is left out where not all of its things are known.
    """
    asked = (_asked(row, prompt, view) for prompt in prompts)
    return tuple(question for question in asked if question is not None)


def with_pixels(
    row: Row,
    asked: tuple[Asked, ...],
    side: int,
    max_pixels: int,
    view: View = PLAIN,
    place: tuple[Tensor, int] | None = None,
) -> Sample:
    """What is seen of the image, squashed to side x side, with the phrases asked of it; raises Reject.

    place: images [B, 3, side, side] and the number of the one that this becomes; None makes a tensor of its own.
    """
    batch, out = (None, None) if place is None else (place[0], place[0][place[1]])
    pixels = decode_image(row.image, (row.height, row.width), side, max_pixels, view.window, out)
    if view.colours != PLAIN.colours:
        pixels.numpy()[:] = recoloured(pixels.numpy(), view.colours)
    if view.flip:
        pixels.numpy()[:] = pixels.numpy()[:, :, ::-1].copy()
    size = view.window[2:] if view.window else (row.height, row.width)
    return Sample(pixels, row.image_id, size, asked, _features(row.taught, view.flip), batch)


def decode_image(
    data: bytes,
    size: tuple[int, int],
    side: int,
    max_pixels: int,
    window: Window | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The pixels [3, side, side] uint8 of a window of an encoded image of `size` (height, width); raises Reject.

    out: where they are written; None makes a tensor. torch resizes as Pillow does, three times as fast, and at once
    in the order of channels that networks take; `out` saves a copy, and the pages of memory for it.
    """
    out = torch.empty(3, side, side, dtype=torch.uint8) if out is None else out
    image = open_image(data, max_pixels)
    if image.size != (size[1], size[0]):
        raise Reject("image size", f"{image.size[::-1]} pixels where the row says {size}")
    top, left, height, width = window or (0, 0, *size)
    with damage_as_reject():
        # Lets libjpeg decode at 1/2, 1/4 or 1/8 scale while that is no smaller than wanted: most of the time saved.
        image.draft("RGB", (-(-side * size[1] // width), -(-side * size[0] // height)))
        image = to_rgb(load_pixels(image))
        if window:  # torch knows no windows that begin within a pixel
            across, down = image.width / size[1], image.height / size[0]
            box = (left * across, top * down, (left + width) * across, (top + height) * down)
            image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)
        # What torch.nn.functional.interpolate(antialias=True) calls, which has no `out`.
        torch.ops.aten._upsample_bilinear2d_aa.out(pixels[None], [side, side], False, out=out[None])
        return out


def recoloured(pixels: np.ndarray, colours: tuple[float, float, float]) -> np.ndarray:
    """The pixels [3, H, W] uint8 with their brightness, contrast and saturation multiplied."""
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    for enhance, factor in zip((Brightness, Contrast, Color), colours, strict=True):
        image = enhance(image).enhance(factor)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def collate(samples: Sequence[Sample]) -> PromptBatch:
    """The batch of some samples; phrases in the order of their images."""
    asked = [(index, question) for index, sample in enumerate(samples) for question in sample.asked]
    questions = [question for _, question in asked]
    return PromptBatch(
        images=_images(samples),
        image_ids=tuple(sample.image_id for sample in samples),
        image_sizes=tuple(sample.size for sample in samples),
        prompts=tuple(question.phrase for question in questions),
        image_of_prompt=torch.tensor([index for index, _ in asked], dtype=torch.int64),
        present=torch.tensor([question.present for question in questions], dtype=torch.bool),
        masks=tuple(question.masks for question in questions),
        ignore=tuple(question.ignore for question in questions),
        exhaustive=torch.tensor([question.exhaustive for question in questions], dtype=torch.bool),
        answers=_answers(samples, questions),
    )


def _images(samples: Sequence[Sample]) -> Tensor:
    """The batch that the images were decoded into, or a copy of them where it has gaps or there is none."""
    batch = samples[0].batch
    if batch is not None and len(batch) == len(samples):
        return batch
    return torch.from_numpy(np.stack([sample.pixels.numpy() for sample in samples]))  # torch would use every core


def _answers(samples: Sequence[Sample], questions: Sequence[Asked]) -> CodedAnswers | None:
    answers = [question.answer for question in questions if question.answer is not None]
    if not answers:
        return None
    assert len(answers) == len(questions), "a store answers all prompts of a row or none"
    features: dict[str, list[Maps]] = {}
    for found in (*(sample.features for sample in samples), *(question.features for question in questions)):
        for name, maps in found.items():
            features.setdefault(name, []).append(maps)
    return stack_answers(answers, features)


def _answer(taught: Mapping[str, bytes], flip: bool) -> Answer | None:
    if "answer" not in taught:
        return None
    answer = decode_answer(taught["answer"])
    return answer.flipped() if flip else answer


def _features(taught: Mapping[str, bytes], flip: bool) -> dict[str, Maps]:
    found = {name: decode_maps(data) for name, data in taught.items() if name != "answer"}
    return {name: maps.flipped() for name, maps in found.items()} if flip else found


def _asked(row: Row, prompt: Prompt, view: View) -> Asked | None:
    masks = tuple(_mask(row, instance.counts, view) for instance in prompt.instances)
    crowd = None if prompt.ignore is None else _mask(row, prompt.ignore, view)
    present = prompt.present
    if view.window is not None:
        masks = tuple(mask for mask in masks if len(mask.counts) > 1)
        crowd = crowd if crowd is not None and len(crowd.counts) > 1 else None
        present = bool(masks) or crowd is not None
        if prompt.present and not present and not prompt.exhaustive:
            return None
    return Asked(
        prompt.phrase,
        present,
        prompt.exhaustive,
        masks,
        crowd,
        _answer(prompt.taught, view.flip),
        _features(prompt.taught, view.flip),
    )


def _mask(row: Row, counts: np.ndarray, view: View) -> Rle:
    if counts.sum(dtype=np.int64) != row.height * row.width:
        raise Reject("rle counts", f"runs add up to {counts.sum(dtype=np.int64)} in {row.height} x {row.width}")
    rle = row.rle(counts)
    if view.window is not None:
        rle = crop_rle(rle, view.window)
    return flip_rle(rle) if view.flip else rle
