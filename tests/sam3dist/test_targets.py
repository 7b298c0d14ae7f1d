import numpy as np
import pytest
import torch

from sam3dist.data.masks import decode_rle, encode_mask
from sam3dist.targets import coverage, make_targets
from sam3dist.types import Rle
from tests.sam3dist.cases import batch_of, rectangle


def speckle(height: int, width: int, seed: int, density: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < density


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (40, 33), (1, 1), (13, 29)])
@pytest.mark.parametrize("density", [0.02, 0.5, 0.98])
def test_coverage_is_the_area_average_of_the_decoded_mask(size: tuple[int, int], density: float):
    mask = speckle(29, 37, 1, density)
    # Every pixel as h x w small ones: then each cell holds a whole number of them.
    fine = np.kron(mask, np.ones(size))
    expected = fine.reshape(size[0], 29, size[1], 37).mean((1, 3))
    np.testing.assert_allclose(coverage(encode_mask(mask), size), expected, atol=1e-12)


def test_runs_over_several_columns_and_zero_runs_are_read_as_decoded():
    full = Rle(6, 5, np.array([0, 30], dtype=np.uint32))
    empty = Rle(6, 5, np.array([30], dtype=np.uint32))
    split = Rle(6, 5, np.array([2, 3, 0, 10, 4, 0, 1, 9, 1], dtype=np.uint32))
    for rle in (full, empty, split):
        np.testing.assert_allclose(coverage(rle, (6, 5)), decode_rle(rle), atol=1e-12)


def test_masks_boxes_and_union_of_a_hand_made_batch():
    batch = batch_of([rectangle(0, 0, 12, 16), rectangle(16, 20, 32, 32)], [], [rectangle(8, 4, 28, 20)])
    targets = make_targets(batch, (8, 8), "cpu")
    assert targets.counts == (2, 0, 1)
    expected = torch.zeros(3, 8, 8, dtype=torch.bool)
    expected[0, 0:3, 0:4] = expected[1, 4:8, 5:8] = expected[2, 2:7, 1:5] = True
    assert torch.equal(targets.masks, expected)
    assert torch.equal(
        targets.semantic, torch.stack([expected[0] | expected[1], torch.zeros(8, 8).bool(), expected[2]])
    )
    assert torch.equal(targets.boxes * 32, torch.tensor([[0.0, 0, 16, 12], [20, 16, 32, 32], [4, 8, 20, 28]]))
    assert targets.present.tolist() == [True, False, True] == targets.has_instances.tolist()
    assert targets.ignore is None


def test_boxes_are_the_extent_of_the_pixels():
    for seed in range(20):
        mask = speckle(23, 31, seed, 0.01)
        if not mask.any():
            continue
        y, x = np.nonzero(mask)
        expected = [x.min() / 31, y.min() / 23, (x.max() + 1) / 31, (y.max() + 1) / 23]
        assert make_targets(batch_of([encode_mask(mask)]), (4, 4), "cpu").boxes[0].tolist() == pytest.approx(expected)


def test_an_instance_smaller_than_a_cell_keeps_the_cell_it_covers_most():
    tiny = rectangle(7, 15, 9, 18)  # over the corner of four cells of 8 pixels, mostly in column 2
    masks = make_targets(batch_of([tiny]), (4, 4), "cpu").masks
    assert masks.sum() == 1
    assert masks[0, 0, 2] or masks[0, 1, 2]


def test_half_a_cell_is_enough():
    masks = make_targets(batch_of([rectangle(0, 0, 32, 20)]), (4, 4), "cpu").masks
    assert masks[0].sum(1).tolist() == [3, 3, 3, 3]


def test_crowd_cells_are_ignored_but_for_those_of_instances():
    crowd = rectangle(0, 0, 16, 32)
    targets = make_targets(batch_of([rectangle(0, 0, 8, 8)], [], ignore=[crowd, None]), (4, 4), "cpu")
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, :2] = True
    expected[0, 0, 0] = False
    assert torch.equal(targets.ignore, expected)


def test_empty_masks_are_left_out():
    targets = make_targets(batch_of([rectangle(3, 3, 3, 3), rectangle(0, 0, 8, 8)]), (4, 4), "cpu")
    assert targets.counts == (1,)
    assert targets.masks.shape == (1, 4, 4)


def test_a_batch_of_negatives_has_empty_targets():
    targets = make_targets(batch_of([], []), (4, 6), "cpu")
    assert targets.masks.shape == (0, 4, 6)
    assert targets.boxes.shape == (0, 4)
    assert not targets.semantic.any()


def test_images_of_different_sizes_share_a_grid():
    wide = rectangle(0, 0, 10, 50, height=20, width=100)
    targets = make_targets(batch_of([wide], [rectangle(0, 0, 16, 16)]), (4, 4), "cpu")
    assert torch.equal(targets.masks[0], targets.masks[1])
    assert torch.equal(targets.boxes[0], targets.boxes[1])
