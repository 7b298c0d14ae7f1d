"""Image files and file names that cannot be used are set aside, each under its own reason."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sam3dist.data.decode import decode_image
from sam3dist.data.images import read_image
from sam3dist.data.rejects import Reject
from tests.sam3dist.data.coco_folder import SIZE, CocoFolder, encoded, only_reason, picture_of


# --- image files
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image(coco: CocoFolder, kind: str):
    coco.image(encoded(picture_of(0), kind)[:-200])
    only_reason(coco, "corrupt image")


def test_a_zero_byte_image(coco: CocoFolder):
    coco.image(b"")
    only_reason(coco, "corrupt image")


def test_an_image_of_garbage(coco: CocoFolder):
    coco.image(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    only_reason(coco, "corrupt image")


def test_a_file_that_is_no_image_format_of_ours(coco: CocoFolder):
    coco.image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n")
    only_reason(coco, "corrupt image")


def test_a_missing_image(coco: CocoFolder):
    coco.image(save=False)
    only_reason(coco, "missing image")


def test_a_directory_in_place_of_an_image(coco: CocoFolder):
    coco.image(save=False)
    (coco.images_dir / "0001.png").mkdir()
    only_reason(coco, "missing image")


def test_a_pipe_in_place_of_an_image(coco: CocoFolder):
    coco.image(save=False)
    os.mkfifo(coco.images_dir / "0001.png")
    only_reason(coco, "missing image")


def test_an_image_of_another_size_than_annotated(coco: CocoFolder):
    coco.image(picture_of(0, (10, 10)))
    only_reason(coco, "image size")


def test_an_image_with_too_many_pixels(coco: CocoFolder):
    coco.image(picture_of(0, (40, 40)), height=40, width=40)
    only_reason(coco, "too many pixels", max_pixels=1000)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(coco: CocoFolder):
    bomb = bytearray(encoded(Image.new("L", (8, 8))))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height of the PNG header
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    coco.image(bytes(bomb), height=60_000, width=60_000)
    only_reason(coco, "too many pixels")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_no_damage_to_an_image_file_raises_anything_but_a_reject(tmp_path: Path, kind: str):
    exif = Image.Exif()
    exif[0x0112] = 3
    out = io.BytesIO()
    picture_of(0).save(out, kind, exif=exif)
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(150):
        damaged = bytearray(out.getvalue())
        for place in rng.integers(0, min(len(damaged), 400), 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(bytes(damaged))
        try:
            data, _ = read_image(tmp_path / "a", *SIZE, 10**6)
            assert decode_image(data, SIZE, 8, 10**6).shape == (3, 8, 8)
            verdicts.add("fine")
        except Reject as reject:
            verdicts.add(reject.reason)
    assert verdicts <= {"fine", "corrupt image", "image size", "too many pixels"}
    assert "corrupt image" in verdicts


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_made_upright_as_pillow_would(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture_of(0).save(tmp_path / "a.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    _, upright = read_image(tmp_path / "a.png", expected.height, expected.width, 10**6)
    assert np.array_equal(np.asarray(upright), np.asarray(expected))


# --- file names
@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.png", "a/../../secret.png", "..\\secret.png", "a\0b.png"])
def test_a_file_name_that_leaves_the_folder(coco: CocoFolder, name: str):
    (coco.root / "secret.png").write_bytes(encoded(picture_of(0)))
    coco.image(save=False, file_name=name)
    only_reason(coco, "unsafe path")


def test_a_link_that_leaves_the_folder(coco: CocoFolder):
    (coco.root / "secret.png").write_bytes(encoded(picture_of(0)))
    (coco.images_dir / "0001.png").symlink_to(coco.root / "secret.png")
    coco.image(save=False)
    only_reason(coco, "unsafe path")


def test_a_link_that_leads_to_itself(coco: CocoFolder):
    (coco.images_dir / "0001.png").symlink_to(coco.images_dir / "0001.png")
    coco.image(save=False)
    only_reason(coco, "missing image")


def test_a_link_within_the_folder_is_fine(coco: CocoFolder):
    coco.save("real.png")
    (coco.images_dir / "0001.png").symlink_to("real.png")
    coco.instance(coco.image(save=False))
    assert coco.prepare()["rejected"] == {}


@pytest.mark.parametrize("name", [None, 7, ""])
def test_an_image_without_a_file_name(coco: CocoFolder, name: Any):
    coco.image(save=False, file_name=name)
    only_reason(coco, "no file name")


def test_a_file_name_that_is_not_unicode(coco: CocoFolder):
    coco.image(save=False, file_name="\udcff.png")
    only_reason(coco, "bad characters")


def test_a_file_name_longer_than_file_systems_allow(coco: CocoFolder):
    coco.image(save=False, file_name="a" * 5000 + ".png")
    only_reason(coco, "missing image")
