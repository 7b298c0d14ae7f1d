"""An image file -> bytes fit to store: upright, 8 bits, gray or RGB, at the annotated size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from sam3dist.data.rejects import Reject

# Pillow warns of large images above a limit of its own, and of odd metadata. Filtered once and for all: a filter
# put up and taken down in threads would leave others behind.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # MPO files open as JPEG
_TURNS = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Reject("unreadable image", f"{path.name!a:.80}: {error.strerror}") from None
    image = load_pixels(open_image(data, max_pixels))
    with damage_as_reject():
        orientation = _orientation(image)
        upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
        if image.size == (width, height) != upright.size:
            upright = image
        if upright.size != (width, height):
            raise Reject("image size", f"{upright.size[::-1]} pixels where the annotations say {(height, width)}")
        modes, formats = ("L", "RGB"), ("JPEG", "MPO", "PNG")
        plain = image.format in formats and image.mode in modes and "transparency" not in image.info
        if plain and orientation not in _TURNS:
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
    if not data:
        raise Reject("corrupt image", "the file is empty")
    with damage_as_reject():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise Reject("too many pixels", f"{image.height} x {image.width}, max_pixels={max_pixels}")
    return image


def load_pixels(image: Image.Image) -> Image.Image:
    """The same image, decoded; raises Reject where the file is damaged or cut short."""
    with damage_as_reject():
        image.load()
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


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata does not make the pixels worse
        return 1


@contextmanager
def damage_as_reject() -> Iterator[None]:
    """Inside, whatever Pillow raises becomes Reject."""
    try:
        yield
    except Reject:
        raise
    except Image.DecompressionBombError as error:
        raise Reject("too many pixels", str(error)) from None
    except Exception as error:  # Pillow's parsers raise nearly every type on damaged files
        raise Reject("corrupt image", f"{type(error).__name__}: {error}"[:200]) from None
