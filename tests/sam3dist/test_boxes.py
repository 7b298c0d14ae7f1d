import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import masks_to_boxes

from sam3dist.boxes import area, extents, iou_and_giou, to_centres


def test_iou_and_giou_of_boxes_counted_by_hand():
    first = torch.tensor([[0.0, 0.0, 0.4, 0.4]])
    # Same; a quarter shared of 0.28 in all; touching corners; apart; inside.
    second = torch.tensor(
        [[0.0, 0.0, 0.4, 0.4], [0.2, 0.2, 0.6, 0.6], [0.4, 0.4, 0.8, 0.8], [0.8, 0.0, 1.0, 0.4], [0.1, 0.1, 0.3, 0.3]]
    )
    iou, giou = iou_and_giou(first, second)
    assert iou.tolist() == pytest.approx([1, 0.04 / 0.28, 0, 0, 0.25])
    assert giou.tolist() == pytest.approx(
        [1, 0.04 / 0.28 - (0.36 - 0.28) / 0.36, -(0.64 - 0.32) / 0.64, -(0.4 - 0.24) / 0.4, 0.25], abs=1e-6
    )


def test_iou_agrees_with_counted_pixels():
    random = torch.Generator().manual_seed(3)
    corners = torch.randint(0, 20, (2, 50, 2), generator=random)
    sides = torch.randint(1, 20, (2, 50, 2), generator=random)
    pixels = torch.cat([corners, corners + sides], dim=-1)
    grid = torch.arange(40)
    inside = (grid >= pixels[..., 0, None]) & (grid < pixels[..., 2, None])
    down = (grid >= pixels[..., 1, None]) & (grid < pixels[..., 3, None])
    masks = down[..., :, None] & inside[..., None, :]
    expected = (masks[0] & masks[1]).sum((1, 2)) / (masks[0] | masks[1]).sum((1, 2))
    iou, _ = iou_and_giou(*(pixels / 40))
    torch.testing.assert_close(iou, expected, atol=1e-5, rtol=1e-4)


def test_boxes_of_no_area_give_finite_values_and_gradients():
    points = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.7, 0.7, 0.6, 0.6]], requires_grad=True)
    iou, giou = iou_and_giou(points, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    giou.sum().backward()
    assert iou.tolist() == [0, 0]
    assert points.grad.isfinite().all()
    assert area(points).tolist() == [0, 0]


def test_giou_pulls_boxes_together_that_do_not_touch():
    box = torch.tensor([0.0, 0.0, 0.1, 0.1], requires_grad=True)
    iou_and_giou(box, torch.tensor([0.5, 0.0, 0.6, 0.1]))[1].backward()
    assert box.grad[2] > 0


def test_centres_of_a_box():
    assert to_centres(torch.tensor([0.1, 0.2, 0.5, 0.4])).tolist() == pytest.approx([0.3, 0.3, 0.4, 0.2])


def test_the_extent_of_a_mask_is_that_of_torchvision_with_its_last_cells():
    random = torch.Generator().manual_seed(1)
    masks = torch.rand(40, 12, 20, generator=random) > 0.98
    masks[0] = False
    masks[1] = True
    masks[2] = False
    masks[2, 11, 19] = True
    some = masks.any((1, 2))
    expected = torch.zeros(40, 4)
    expected[some] = masks_to_boxes(masks[some]) + torch.tensor([0.0, 0, 1, 1])
    assert_close(extents(masks) * torch.tensor([20.0, 12, 20, 12]), expected)
    assert extents(masks[:0]).shape == (0, 4)
