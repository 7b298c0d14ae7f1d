import math

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from sam3dist.terms import bce, bernoulli_kl, dice_loss, focal_loss, soft_dice_loss


def logits(*shape: int, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_kl_is_that_of_two_coins(temperature: float):
    student, teacher = logits(500, seed=0), logits(500, seed=1)
    expected = kl_divergence(Bernoulli(logits=teacher / temperature), Bernoulli(logits=student / temperature))
    torch.testing.assert_close(bernoulli_kl(student, teacher, temperature), temperature**2 * expected)


def test_kl_is_cross_entropy_less_entropy():
    student, teacher = logits(100, seed=0), logits(100, seed=1)
    expected = bce(student, teacher.sigmoid()) - bce(teacher, teacher.sigmoid())
    torch.testing.assert_close(bernoulli_kl(student, teacher, 1.0), expected, atol=1e-9, rtol=1e-6)


def test_kl_keeps_its_digits_where_both_are_sure():
    student, teacher = torch.tensor([19.0, -19.0, 30.0]), torch.tensor([20.0, -20.0, 31.0])
    p, q = math.exp(-20), math.exp(-19)  # chances of the unlikely outcome; KL is p log(p/q) + q - p to first order
    expected = torch.tensor([p * -1 + q - p] * 2 + [(-2 * math.exp(-31) + math.exp(-30))])
    torch.testing.assert_close(bernoulli_kl(student, teacher, 1.0), expected, rtol=1e-4, atol=0)


def test_gradient_does_not_fade_with_temperature():
    teacher = logits(50, seed=1)
    gradients = []
    for temperature in (50.0, 100.0):
        student = logits(50, seed=0).requires_grad_()
        bernoulli_kl(student, teacher, temperature).sum().backward()
        gradients.append(student.grad)
        torch.testing.assert_close(student.grad, (student.detach() - teacher) / 4, rtol=0.02, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=0)


def test_softmax_over_a_single_logit_would_teach_nothing():
    student, teacher = torch.tensor([[-3.0]], requires_grad=True), torch.tensor([[5.0]])
    pitfall = torch.nn.functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="sum")
    pitfall.backward()
    assert pitfall.item() == 0
    assert student.grad.item() == 0
    student.grad = None
    loss = bernoulli_kl(student, teacher, 2.0).sum()
    loss.backward()
    assert loss.item() > 1
    assert student.grad.item() < -0.1


def test_dice_of_masks_counted_by_hand():
    target = torch.zeros(3, 4, 4)
    target[0, :2], target[1, :2] = 1, 1
    found = torch.full((3, 4, 4), -50.0)
    found[0, :2] = 50  # same 8 cells
    found[1, 1:3] = 50  # 8 cells, 4 shared
    found[2, 0, 0] = 50  # one cell where nothing is
    assert dice_loss(found, target).tolist() == pytest.approx([0, 1 - 9 / 17, 1 - 1 / 2])
    known = torch.ones(3, 4, 4)
    known[1, 2], known[2, 0, 0] = 0, 0
    assert dice_loss(found, target, known).tolist() == pytest.approx([0, 1 - 9 / 13, 0])


@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_focal_loss_by_its_definition(alpha: float):
    for logit in (-3.0, 0.0, 2.0):
        p = 1 / (1 + math.exp(-logit))
        values = focal_loss(torch.tensor([logit, logit]), torch.tensor([1.0, 0.0]), alpha)
        expected = [-alpha * (1 - p) ** 2 * math.log(p), -(1 - alpha) * p**2 * math.log(1 - p)]
        assert values.tolist() == pytest.approx(expected, rel=1e-5)


def test_soft_dice_is_least_at_the_teachers_probabilities():
    teacher = logits(3, 6, 6, seed=2, scale=1.0)
    assert soft_dice_loss(teacher, teacher).abs().max() < 1e-12
    for seed in range(20):
        near = teacher + 0.05 * logits(3, 6, 6, seed=seed, scale=1.0)
        assert (soft_dice_loss(near, teacher) > 0).all()
    surer = 3 * teacher
    assert (dice_loss(surer, teacher.sigmoid()) < dice_loss(teacher, teacher.sigmoid())).all()
