from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sam3dist.errors import DataError
from sam3dist.models.segmenter import Segmenter
from sam3dist.predict import coco_document, draw, predict, read_picture
from sam3dist.predictions import Instance

LOW = 0.01
"""A threshold that an untrained network reaches."""


def blob(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_masks_and_boxes_are_in_the_pixels_of_the_image(tiny_teacher: Segmenter):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8))
    found = predict(tiny_teacher, image, ["red circle", "a dog"], LOW)
    assert len(found) == 2
    assert all(instances for instances in found)
    for instance in (instance for instances in found for instance in instances):
        assert instance.mask.shape == (50, 90)
        assert instance.mask.dtype == bool
        assert instance.score >= LOW
        left, top, right, bottom = instance.box
        assert -1e-3 <= left <= right <= 90.001
        assert -1e-3 <= top <= bottom <= 50.001


def test_answers_are_those_of_the_network_asked_directly(tiny_teacher: Segmenter):
    side = tiny_teacher.image_size
    pixels = np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8)
    found = predict(tiny_teacher, Image.fromarray(pixels), ["red circle"], LOW)[0]
    with torch.no_grad():
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        answer = tiny_teacher(images, torch.tensor([0]), ("red circle",))
    scores = answer["query_logits"][0].sigmoid() * answer["presence_logits"][0].sigmoid()
    best = int(scores.argmax())
    logits = answer["mask_logits"][0, best][None, None].float()
    mask = torch.nn.functional.interpolate(logits, size=(side, side), mode="bilinear")[0, 0] > 0
    assert found[0].score == pytest.approx(float(scores[best]), rel=1e-5)
    assert np.array_equal(found[0].mask, mask.numpy())


def test_nothing_reaches_a_high_threshold(tiny_teacher: Segmenter):
    assert predict(tiny_teacher, Image.new("RGB", (30, 30)), ["a dog"], 0.999) == [[]]


def test_the_document_is_coco_that_pycocotools_reads():
    found = [
        [
            Instance(blob(2, 3, 12, 33), (3.0, 2.0, 33.0, 12.0), 0.9),
            Instance(blob(20, 0, 40, 10), (0, 20, 10, 40), 0.6),
        ],
        [],
    ]
    document = coco_document("reef.jpg", (40, 60), ["yellow fish", "shark"], found)
    assert document["images"] == [{"id": 1, "file_name": "reef.jpg", "height": 40, "width": 60}]
    assert [category["name"] for category in document["categories"]] == ["yellow fish", "shark"]
    first = document["annotations"][0]
    assert (first["phrase"], first["score"], first["bbox"], first["area"]) == ("yellow fish", 0.9, [3, 2, 30, 10], 300)
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    for annotation, instance in zip(coco.loadAnns(coco.getAnnIds(catIds=[1])), found[0], strict=True):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), instance.mask)
        assert coco_mask.area(annotation["segmentation"]) == annotation["area"]
    assert coco.getAnnIds(catIds=[2]) == []


def test_the_picture_shows_every_instance():
    image = Image.new("RGB", (60, 40))
    found = [
        [Instance(blob(20, 0, 40, 10), (0, 20, 10, 40), 0.6)],
        [Instance(blob(25, 30, 35, 50), (30, 25, 50, 35), 0.9)],
    ]
    drawn = np.asarray(draw(image, ["a", "b"], found))
    assert drawn[30, 4].any()
    assert drawn[30, 40].any()
    assert not drawn[38, 55].any()


def test_a_picture_is_read_upright_and_in_rgb(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, :10] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_picture(tmp_path / "turned.png")
    assert (image.size, image.mode) == ((10, 20), "RGB")
    assert image.getpixel((5, 2)) == (255, 0, 0)
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "cut", "empty", "large"])
def test_a_bad_image_is_named_in_one_line(kind: str, tmp_path: Path):
    path = tmp_path / f"{kind}.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "good.jpg")
    good = (tmp_path / "good.jpg").read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"text": b"hello", "cut": good[: len(good) // 2], "empty": b"", "large": good}[kind])
    with pytest.raises(DataError) as caught:
        read_picture(path, max_pixels=4000 if kind == "large" else 5000)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert ("data.max_pixels" in message) == (kind == "large")
