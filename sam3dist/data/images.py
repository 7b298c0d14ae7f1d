"""An image file -> bytes fit to store: upright, 8 bits, gray or RGB, at the annotated size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sam3dist.data.rejects import Reject

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # MPO files open as JPEG
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


def read_image(path: Path, height: int, width: int, max_pixels: int) -> tuple[bytes, Image.Image]:
    """The encoded image and its upright pixels, which are as many as the annotations say; raises Reject.

    The bytes are those of the file where every decoder makes the same pixels of them. Otherwise they are encoded
    anew, JPEG as JPEG of quality 95 and all else as PNG: CMYK, 16 bits (scaled to 8), palettes, transparency (laid
    on white), other formats, and EXIF orientation, which is applied as annotation tools do, unless only the
    unrotated size is the annotated one.
    """
    data = path.read_bytes()
    if not data:
        raise Reject("corrupt image", "the file is empty")
    image = load_pixels(open_image(data, max_pixels))
    upright = _upright(image, (width, height))
    if upright.size != (width, height):
        raise Reject("image size", f"{upright.size[::-1]} pixels where the annotations say {(height, width)}")
    plain = image.format in ("JPEG", "MPO", "PNG") and image.mode in ("L", "RGB") and "transparency" not in image.info
    if plain and image.getexif().get(_ORIENTATION, 1) == 1:
        return data, image
    upright = to_rgb(upright)
    return encode_image(upright, image.format), upright


def encode_image(image: Image.Image, original_format: str | None) -> bytes:
    """A file of these pixels: JPEG where the original was one, PNG otherwise; without metadata."""
    out = io.BytesIO()
    if original_format in ("JPEG", "MPO"):
        image.save(out, "JPEG", quality=95, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The image with its header read and its pixels not; raises Reject above `max_pixels` or for a broken header."""
    try:
        with warnings.catch_warnings():
            # Pillow warns above a limit of its own; ours is checked next.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Reject("too many pixels", str(error)) from None
    except Exception as error:  # Pillow's parsers raise nearly every type on damaged files
        raise Reject("corrupt image", f"{type(error).__name__}: {error}"[:200]) from None
    if image.width * image.height > max_pixels:
        raise Reject("too many pixels", f"{image.height} x {image.width}, max_pixels={max_pixels}")
    return image


def load_pixels(image: Image.Image) -> Image.Image:
    """The same image, decoded; raises Reject where the file is damaged or cut short."""
    try:
        image.load()
    except Exception as error:
        raise Reject("corrupt image", f"{type(error).__name__}: {error}"[:200]) from None
    return image


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
