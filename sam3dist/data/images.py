"""An image file -> bytes fit to store: upright, 8 bits, gray or RGB, at the annotated size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sam3dist.data.rejects import Reject

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_ORIENTATION = 0x0112  # EXIF tag


def find_image(folder: Path, file_name: str) -> Path:
    """The file inside `folder`; raises Reject for a name that leaves it, or that names no file."""
    if Path(file_name).is_absolute() or ".." in Path(file_name.replace("\\", "/")).parts or "\0" in file_name:
        raise Reject("unsafe path", f"file_name {file_name!a:.80}")
    try:
        path = (folder / file_name).resolve()
        # Not only existing: reading a pipe or a device would never end.
        found = path.is_file()
    except (OSError, RuntimeError) as error:
        raise Reject("missing image", f"{file_name!a:.80}: {error}") from None
    if not path.is_relative_to(folder.resolve()):
        raise Reject("unsafe path", f"file_name {file_name!a:.80} links to a place outside the image folder")
    if not found:
        raise Reject("missing image", f"no file {file_name!a:.80}")
    return path


def image_bytes(path: Path, height: int, width: int, max_pixels: int) -> bytes:
    """The encoded image, unchanged where every decoder gives the annotated pixels, else encoded anew.

    Encoded anew, JPEG stays JPEG (quality 95) and everything else becomes PNG: CMYK, 16 bits (scaled to 8),
    palettes, transparency (on white), other formats, and EXIF orientation, which is applied as annotation tools
    do, unless only the unrotated size is the annotated one. Raises Reject.
    """
    data = path.read_bytes()
    if not data:
        raise Reject("corrupt image", "the file is empty")
    image = open_image(data, max_pixels)
    upright = _upright(image, (width, height))
    if upright.size != (width, height):
        raise Reject("image size", f"{upright.size[::-1]} pixels where the annotations say {(height, width)}")
    plain = image.format in ("JPEG", "MPO", "PNG") and image.mode in ("L", "RGB") and "transparency" not in image.info
    if plain and image.getexif().get(_ORIENTATION, 1) == 1:
        return data
    out = io.BytesIO()
    if image.format in ("JPEG", "MPO"):
        to_rgb(upright).save(out, "JPEG", quality=95, subsampling=0)
    else:
        to_rgb(upright).save(out, "PNG")
    return out.getvalue()


def open_image(data: bytes, max_pixels: int, side: int | None = None) -> Image.Image:
    """The decoded image; raises Reject where it is damaged or has more than `max_pixels`, checked before decoding.

    With `side`, a JPEG is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8) that has at least this many
    pixels either way, which saves most of the time.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns above a limit of its own; ours is checked next.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height <= max_pixels:
            if side is not None:
                image.draft("RGB", (side, side))
            image.load()
            return image
    except Image.DecompressionBombError:
        width = height = 0
    except Exception as error:  # Pillow's parsers raise nearly every type on damaged files
        raise Reject("corrupt image", f"{type(error).__name__}: {error}"[:200]) from None
    raise Reject("too many pixels", f"{height} x {width}, max_pixels={max_pixels}" if width else "a decompression bomb")


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB: 16 bits scaled, transparency laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        scale = 257 if image.mode != "F" else 1
        return Image.fromarray((values / scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image, annotated: tuple[int, int]) -> Image.Image:
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    return image if turned.size != annotated and image.size == annotated else turned
