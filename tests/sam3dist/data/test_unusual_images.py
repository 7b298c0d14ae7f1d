"""Images that are unusual but fine become upright 8-bit RGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.sam3dist.data.coco_folder import SIZE, CocoFolder, encoded, picture_of


def pixels(coco: CocoFolder) -> np.ndarray:
    assert coco.prepare()["rejected"] == {}
    image = Image.open(io.BytesIO(coco.rows()[0].image))
    assert image.mode in ("L", "RGB")
    assert image.size == (SIZE[1], SIZE[0])
    assert image.getexif().get(0x0112, 1) == 1
    return np.asarray(image.convert("RGB")).astype(int)


def test_plain_files_are_stored_byte_for_byte(coco: CocoFolder):
    coco.instance(coco.image(encoded(picture_of(3), "JPEG")))
    coco.instance(coco.image(encoded(picture_of(4).convert("L"), "JPEG")))
    coco.instance(coco.image(encoded(picture_of(5), "PNG")))
    coco.prepare()
    for row in coco.rows():
        assert row.image == (coco.images_dir / row.file_name).read_bytes()


def test_exif_rotation_is_applied(coco: CocoFolder):
    upright = picture_of(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right for display
    coco.instance(coco.image(save=False, file_name="r.png"))
    coco.save("r.png", upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert np.array_equal(pixels(coco), np.asarray(upright))


def test_exif_rotation_is_ignored_where_only_the_unrotated_size_is_annotated(coco: CocoFolder):
    exif = Image.Exif()
    exif[0x0112] = 6
    coco.instance(coco.image(save=False, file_name="r.png"))
    coco.save("r.png", picture_of(3), exif=exif)
    assert np.array_equal(pixels(coco), np.asarray(picture_of(3)))


def test_cmyk_jpeg_becomes_rgb(coco: CocoFolder):
    coco.instance(coco.image(encoded(picture_of(3).convert("CMYK"), "JPEG")))
    assert np.abs(pixels(coco) - np.asarray(picture_of(3))).mean() < 8


def test_sixteen_bits_are_scaled_to_eight(coco: CocoFolder):
    ramp = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) * 85
    coco.instance(coco.image(encoded(Image.fromarray(ramp))))
    assert np.array_equal(pixels(coco)[..., 0], ramp // 257)


def test_grayscale_is_kept(coco: CocoFolder):
    gray = picture_of(3).convert("L")
    coco.instance(coco.image(encoded(gray)))
    assert np.array_equal(pixels(coco)[..., 1], np.asarray(gray))


def test_alpha_is_laid_on_white(coco: CocoFolder):
    picture = picture_of(3)
    picture.putalpha(Image.fromarray(np.repeat([[0], [255]], SIZE[1], 1).repeat(12, 0).astype(np.uint8)))
    coco.instance(coco.image(encoded(picture)))
    shown = pixels(coco)
    assert (shown[:12] == 255).all()
    assert np.array_equal(shown[12:], np.asarray(picture_of(3))[12:])


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_become_png(coco: CocoFolder, kind: str):
    coco.instance(coco.image(encoded(picture_of(3), kind)))
    assert np.abs(pixels(coco) - np.asarray(picture_of(3))).mean() < 10
