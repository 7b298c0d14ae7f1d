"""Every kind of bad record is set aside under its own reason, and the good ones beside it survive."""

from __future__ import annotations

import contextlib
import io
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sam3dist.data.decode import decode_image
from sam3dist.data.images import read_image
from sam3dist.data.masks import decode_rle, encode_mask
from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.rejects import Reject
from sam3dist.errors import ConfigError, DataError
from tests.sam3dist.data.coco_folder import SIZE, CocoFolder, picture_of


def only_reason(coco: CocoFolder, reason: str, **settings: Any) -> None:
    """Prepares beside one good image with one good instance; just this reason is counted, just once."""
    coco.instance(coco.image())
    manifest = coco.prepare(**settings)
    assert manifest["rejected"] == {reason: 1}
    assert (manifest["rows"], manifest["instances"]) == (1, 1)
    assert [line["reason"] for line in coco.rejected()] == [reason]


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


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


@pytest.mark.filterwarnings("ignore::UserWarning")
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


# --- records


@pytest.mark.parametrize("size", [{"height": 0}, {"width": -4}, {"width": "32"}, {"height": None}, {"height": 24.0}])
def test_an_image_whose_annotated_size_is_no_size(coco: CocoFolder, size: dict):
    coco.image(**size)
    only_reason(coco, "bad size")


def test_a_duplicate_image_id(coco: CocoFolder):
    coco.images.append({"id": 2, "file_name": "other.png", "height": 9, "width": 9})
    coco.instance(coco.image())
    coco.images.reverse()  # the good one comes first and stays
    assert coco.prepare()["rejected"] == {"duplicate image id": 1}
    assert coco.rows()[0].file_name == "0002.png"


def test_a_duplicate_annotation_id(coco: CocoFolder):
    image = coco.image()
    coco.instance(image, 1, id=7)
    coco.instance(image, 1, id=7)
    manifest = coco.prepare()
    assert manifest["rejected"] == {"duplicate annotation id": 1}
    assert manifest["instances"] == 1
    assert not coco.rows()[0].prompts[0].exhaustive


def test_a_dangling_image_id(coco: CocoFolder):
    coco.instance(99)
    only_reason(coco, "dangling image id")


def test_an_unknown_category_id(coco: CocoFolder):
    coco.instance(coco.image(), 77)
    coco.head["categories"] = coco.head["categories"][:1]
    manifest = coco.prepare()
    assert manifest["rejected"] == {"unknown category id": 1}
    assert (manifest["instances"], manifest["negatives"]) == (0, 1)


@pytest.mark.parametrize("value", [None, "1", 1.5, True, 2**80, [1]])
@pytest.mark.parametrize("key", ["id", "image_id"])
def test_an_id_that_is_no_integer(coco: CocoFolder, key: str, value: Any):
    coco.annotations.append({"id": 900, "image_id": 1, "category_id": 1} | {key: value})
    only_reason(coco, "bad id")


@pytest.mark.parametrize("record", [None, 5, "image", [1]])
def test_a_record_that_is_no_object(coco: CocoFolder, record: Any):
    coco.annotations.append(record)
    only_reason(coco, "not a record")


@pytest.mark.parametrize("name", [None, "", "  ", 5])
def test_a_nameless_category(coco: CocoFolder, name: Any):
    coco.head["categories"].append({"id": 9, "name": name})
    only_reason(coco, "nameless category")


def test_a_duplicate_category_id(coco: CocoFolder):
    coco.head["categories"].append({"id": 1, "name": "lion"})
    only_reason(coco, "duplicate category id")


# --- boxes and masks


def bad_instance(coco: CocoFolder, reason: str, **record: Any) -> None:
    image = coco.image()
    coco.instance(image, 1)
    coco.instance(image, 1, **record)
    manifest = coco.prepare()
    assert manifest["rejected"] == {reason: 1}
    (row,) = coco.rows()
    cat = next(prompt for prompt in row.prompts if prompt.phrase == "cat")
    assert len(cat.instances) == 1
    assert not cat.exhaustive  # one instance is known to be missing


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_box(coco: CocoFolder, value: float):
    bad_instance(coco, "non-finite box", bbox=[0, value, 4, 4])


@pytest.mark.parametrize("box", [[-5, 0, 4, 4], [0, -5, 4, 4], [8, 8, -4, 4], [8, 8, 4, -4]])
def test_a_negative_box(coco: CocoFolder, box: list):
    bad_instance(coco, "negative box", bbox=box)


@pytest.mark.parametrize("box", [[3, 3, 0, 4], [3, 3, 4, 0]])
def test_a_box_of_zero_area(coco: CocoFolder, box: list):
    bad_instance(coco, "empty box", bbox=box)


@pytest.mark.parametrize("box", [[1, 2, 3], "1 2 3 4", [1, 2, 3, None], {"x": 1}])
def test_a_box_that_is_not_four_numbers(coco: CocoFolder, box: Any):
    bad_instance(coco, "bad box", bbox=box)


def test_a_mask_of_another_size_than_its_image(coco: CocoFolder):
    bad_instance(coco, "mask size", segmentation={"size": [32, 24], "counts": [100, 50, 618]})


@pytest.mark.parametrize(
    "counts",
    [
        [100, 50],
        [100, 50, 10_000],
        [-10, 20, 758],
        [1.5, 766.5],
        [2**40],
        [],
        None,
        "",
        "0",
        "ooooooo",
        "not an rle!",
        "\u2603",
    ],
)
def test_an_rle_of_wrong_counts(coco: CocoFolder, counts: Any):
    bad_instance(coco, "rle counts", segmentation={"size": list(SIZE), "counts": counts})


def test_a_mask_without_a_pixel(coco: CocoFolder):
    bad_instance(coco, "empty mask", segmentation={"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]})


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[100, 100, 110, 100, 110, 110]],
        [[5, 5, 5, 5, 5, 5]],
    ],
)
def test_a_degenerate_polygon(coco: CocoFolder, polygons: list):
    bad_instance(coco, "degenerate polygon", segmentation=polygons)


@pytest.mark.parametrize("corner", [math.nan, math.inf, 1e30, "4", None])
def test_a_polygon_with_a_corner_that_is_no_place(coco: CocoFolder, corner: Any):
    bad_instance(coco, "bad polygon", segmentation=[[4, 4, 12, 4, 12, corner]])


@pytest.mark.parametrize("segmentation", [None, "polygon", 5])
def test_an_annotation_without_segmentation(coco: CocoFolder, segmentation: Any):
    bad_instance(coco, "no segmentation", segmentation=segmentation)


def test_a_phrase_that_lost_all_its_instances_is_neither_positive_nor_negative(coco: CocoFolder):
    coco.instance(coco.image(), 1, bbox=[0, 0, -1, 5])
    coco.prepare()
    (row,) = coco.rows()
    assert {prompt.phrase for prompt in row.prompts} == {"dog", "traffic light"}


# --- phrases of SA-Co pairs


@pytest.mark.parametrize(
    ("phrase", "reason"),
    [
        ("", "empty phrase"),
        (" \t\n", "empty phrase"),
        (None, "empty phrase"),
        (["cat"], "empty phrase"),
        ("word " * 1000, "huge phrase"),
        ("half a pair \ud83d", "bad characters"),
        ("bell \x07", "bad characters"),
        ("CAT", "duplicate phrase"),
    ],
)
def test_a_phrase_that_is_none(coco: CocoFolder, phrase: Any, reason: str):
    coco.instance(coco.pair("cat", "a.png"), bbox=[0.1, 0.1, 0.3, 0.3])
    coco.pair(phrase, "a.png")
    manifest = coco.prepare()
    assert manifest["rejected"] == {reason: 1}
    assert (manifest["positives"], manifest["negatives"]) == (1, 0)


def test_pairs_that_disagree_about_the_size_of_their_image(coco: CocoFolder):
    coco.instance(coco.pair("cat", "a.png"))
    coco.pair("dog", "a.png", width=77)
    assert coco.prepare()["rejected"] == {"bad size": 1}


def test_a_duplicate_pair_id(coco: CocoFolder):
    coco.instance(coco.pair("cat", "a.png"))
    coco.pair("dog", "a.png", id=1)
    assert coco.prepare()["rejected"] == {"duplicate pair id": 1}


# --- unusual images that are fine


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


# --- the whole file


def test_more_rejects_than_allowed_fail_with_the_counts(coco: CocoFolder):
    for _ in range(8):
        coco.instance(coco.image())
    coco.instance(coco.image(b""))
    coco.instance(coco.image(save=False))
    with pytest.raises(DataError, match=r"max_rejected_share=0.1: 2 of 10 image records .*corrupt image 1") as error:
        coco.prepare(max_rejected_share=0.1)
    assert "missing image 1" in str(error.value)
    assert len(coco.rejected()) == 2
    assert not (coco.out / "manifest.json").exists()
    assert not list(coco.out.glob("*.parquet"))
    assert coco.prepare(max_rejected_share=0.2)["rows"] == 8


def test_rejected_annotations_have_a_limit_of_their_own(coco: CocoFolder):
    image = coco.image()
    for index in range(10):
        coco.instance(image, bbox=[0, 0, 4, 4] if index else [0, 0, -4, 4])
    with pytest.raises(DataError, match="1 of 10 annotation records"):
        coco.prepare(max_rejected_share=0.05)


def test_no_usable_image_at_all_fails(coco: CocoFolder):
    coco.image(b"")
    with pytest.raises(DataError, match="not one image could be used"):
        coco.prepare()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends in the middle"),
        (b'{"images": []}', "no images"),
        (b'{"annotations": 5, "images": {}}', "no .\\["),
        (b'{"images": [{"file_name": "\xff\xfe.png"}]}', "not UTF-8"),
        (b'{"images": [', "not JSON|ends"),
    ],
)
def test_an_annotation_file_that_is_none(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "bad.json").write_bytes(content)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=words) as error:
        prepare(tmp_path / "bad.json", tmp_path / "images", tmp_path / "out")
    assert "\n" not in str(error.value)


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    math.nan,
    "",
    "x",
    "\ud800",
    [],
    [None],
    [[]],
    {},
    {"size": 5, "counts": []},
]


@pytest.mark.parametrize("style", ["coco", "saco"])
def test_no_odd_value_anywhere_ends_in_a_traceback(tmp_path: Path, style: str):
    rng = np.random.default_rng(0)
    for trial in range(60):
        folder = CocoFolder(tmp_path / str(trial))
        for number in (1, 2, 3):
            image = folder.image() if style == "coco" else folder.pair(f"thing {number}", f"{number % 2}.png")
            folder.instance(image)
            folder.instance(image, segmentation={"size": list(SIZE), "counts": [5, 5, 758]})
        folder.head["info"] = {"sources": {"zoo": {"exhaustive_category_ids": [1]}}}
        records = [*folder.images, *folder.annotations, *folder.head["categories"]]
        for record in rng.choice(np.array(records, dtype=object), 3):
            odd = ODD_VALUES[rng.integers(len(ODD_VALUES))]
            extra = ["source", "neg_category_ids", "dropped_tiny", "not_exhaustive_category_ids", "supercategory"]
            record[str(rng.choice([*record, *extra]))] = odd
        for key in rng.choice(["categories", "info", "licenses"], rng.integers(2)):
            folder.head[str(key)] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
        with contextlib.suppress(DataError):  # a person can mend it; anything else is our mistake
            assert folder.prepare()["rows"] == len(folder.rows())


def test_missing_inputs_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"a.json: no such file"):
        prepare(tmp_path / "a.json", tmp_path, tmp_path / "out")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="photos: no such directory"):
        prepare(tmp_path / "a.json", tmp_path / "photos", tmp_path / "out")


@pytest.mark.parametrize("setting", [{"threads": 0}, {"max_rejected_share": 1.5}, {"max_negatives_per_image": -1}])
def test_settings_out_of_range_are_named(setting: dict):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        PrepareSettings(**setting)


def test_masks_survive_in_every_notation(coco: CocoFolder):
    from pycocotools import mask as coco_mask

    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 5:20] = mask[12:20, 1:4] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    image = coco.image()
    coco.instance(image, 1, segmentation={"size": list(SIZE), "counts": packed["counts"].decode()})
    coco.instance(image, 1, segmentation={"size": list(SIZE), "counts": encode_mask(mask).counts.tolist()})
    coco.instance(image, 1, segmentation=[[5, 3, 20, 3, 20, 9, 5, 9], [1, 12, 4, 12, 4, 20, 1, 20], [9, 9, 9, 9]])
    coco.prepare()
    (row,) = coco.rows()
    for instance in row.prompts[0].instances:
        assert np.array_equal(decode_rle(row.rle(instance.counts)), mask)
        assert (instance.area, instance.box) == (mask.sum(), (1, 3, 20, 20))
