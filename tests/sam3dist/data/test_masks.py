import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam3dist.data.masks import (
    counts_from_string,
    decode_rle,
    encode_mask,
    flip_rle,
    resize_masks,
    rle_area,
    rle_box,
)
from sam3dist.types import Rle


def random_masks(count: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = []
    for index in range(count):
        height, width = rng.integers(1, 40, 2)
        masks.append(rng.random((height, width)) < (0.03, 0.5, 0.97)[index % 3])
    return masks


def test_encoded_masks_decode_to_themselves():
    for mask in [*random_masks(), np.zeros((3, 5), bool), np.ones((3, 5), bool)]:
        rle = encode_mask(mask)
        assert rle.counts.dtype == np.uint32
        assert rle.counts.sum() == mask.size
        assert np.array_equal(decode_rle(rle), mask)


def test_runs_are_those_of_pycocotools():
    for mask in random_masks():
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert np.array_equal(counts_from_string(packed["counts"]), encode_mask(mask).counts)
        assert np.array_equal(counts_from_string(packed["counts"].decode()), encode_mask(mask).counts)


def test_long_runs_unpack_as_pycocotools_packs_them():
    mask = np.zeros((3000, 2000), bool)
    mask[5:7, 3] = mask[2900:, 1500:1900] = True
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(counts_from_string(packed["counts"]), encode_mask(mask).counts)


def test_area_and_box_come_from_the_pixels():
    for mask in random_masks():
        rle = encode_mask(mask)
        assert rle_area(rle) == mask.sum()
        if mask.any():
            rows, columns = np.nonzero(mask)
            assert rle_box(rle) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert rle_box(encode_mask(np.zeros((4, 4), bool))) == (0, 0, 0, 0)


def test_runs_of_no_length_change_nothing():
    rle = Rle(4, 2, np.array([2, 1, 0, 0, 0, 1, 4], np.uint32))
    assert decode_rle(rle).T.ravel().tolist() == [False, False, True, True, False, False, False, False]
    assert rle_box(rle) == (0, 2, 1, 4)


def test_flipping_mirrors_left_and_right():
    for mask in random_masks(12):
        assert np.array_equal(decode_rle(flip_rle(encode_mask(mask))), np.fliplr(mask))


def test_resizing_averages_areas_exactly():
    mask = np.zeros((6, 9), bool)
    mask[0:3, 0:4] = True
    resized = resize_masks([encode_mask(mask)], 2, 3)[0]
    assert np.allclose(resized, [[1, 1 / 3, 0], [0, 0, 0]])


def test_resizing_keeps_the_share_of_the_image_at_any_size():
    for mask in random_masks(20):
        for size in ((7, 11), (50, 3), (1, 1)):
            assert resize_masks([encode_mask(mask)], *size).mean() == pytest.approx(mask.mean(), abs=1e-4)


@pytest.mark.parametrize("text", ["o", "0o", "\x01", "é", "o" * 40 + "0"])
def test_damaged_run_strings_raise(text: str):
    with pytest.raises(ValueError, match=r"RLE|run"):
        counts_from_string(text)
