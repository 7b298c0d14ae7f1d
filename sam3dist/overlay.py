"""Instances drawn over their image: a colour each, a clear outline, and a label with the score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

# Twelve hues that stay apart on screens and in print; neighbours in the list differ most.
PALETTE = (
    (255, 92, 64),
    (46, 160, 255),
    (255, 196, 0),
    (38, 196, 120),
    (190, 90, 255),
    (0, 205, 214),
    (255, 96, 176),
    (150, 210, 30),
    (110, 118, 255),
    (255, 146, 40),
    (0, 150, 136),
    (200, 120, 84),
)
MAX_SIDE = 2048
"""Longer images are drawn at this size: an overlay is for looking at, the exact masks are in the JSON."""
FILL = 0.42


def overlay(image: Image.Image, masks: Sequence[np.ndarray], labels: Sequence[str]) -> Image.Image:
    """The RGB image with masks [H, W] bool tinted and outlined, the first on top, and their labels.

    The masks have the size of the image. Colours follow the order of the masks, from PALETTE.
    """
    assert len(masks) == len(labels)
    scale = min(1.0, MAX_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = [mask if scale == 1 else _shrunk(mask, size) for mask in masks]
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
    thickness = max(1, round(max(size) / 400))
    for index in reversed(range(len(small))):
        _tint(pixels, small[index], PALETTE[index % len(PALETTE)], thickness)
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(11, round(max(size) / 45)))
    taken: list[tuple[float, float, float, float]] = []
    for index, (mask, label) in enumerate(zip(small, labels, strict=True)):
        if mask.any():
            _write(pen, drawn.size, mask, label, PALETTE[index % len(PALETTE)], font, taken)
    return drawn


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, Image.Resampling.BOX)) >= 128


def _tint(pixels: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], thickness: int) -> None:
    """Colours [H, W, 3] pixels in place: the mask half through, its inner edge fully, a dark line around it."""
    ink = np.array(color, dtype=np.float32)
    pixels[mask] += FILL * (ink - pixels[mask])
    inner = mask & ~ndimage.binary_erosion(mask, iterations=thickness, border_value=1)
    pixels[inner] = ink
    outer = ndimage.binary_dilation(mask, iterations=max(1, thickness // 2)) & ~mask
    pixels[outer] *= 0.35


def _write(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    mask: np.ndarray,
    label: str,
    color: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """A label above the mask, or below labels that are there already, always inside the image."""
    rows, columns = np.nonzero(mask)
    left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
    width, height, pad = right - left, bottom - top, max(2, round((bottom - top) / 4))
    x = float(np.clip(columns.min(), 0, max(0, size[0] - width - 2 * pad)))
    y = float(max(0, rows.min() - height - 2 * pad))
    box = (x, y, x + width + 2 * pad, y + height + 2 * pad)
    while any(_overlap(box, other) for other in taken) and box[3] + height + 2 * pad <= size[1]:
        y += height + 2 * pad
        box = (x, y, box[2], y + height + 2 * pad)
    taken.append(box)
    pen.rectangle(box, fill=color)
    # Dark text on light colours, light on dark (Rec. 601 luma).
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    pen.text((x + pad - left, y + pad - top), label, font=font, fill="black" if luma > 140 else "white")


def _overlap(one: tuple[float, float, float, float], two: tuple[float, float, float, float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
