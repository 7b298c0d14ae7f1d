from dataclasses import replace

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from sam3dist.answers import imitable
from sam3dist.config.distill import TaskWeights
from sam3dist.imitation import background_kl, feature_loss, imitation_loss, resize_logits
from sam3dist.targets import make_targets
from sam3dist.types import SegOutputs
from tests.sam3dist.cases import Answers, four_prompts, truthful

WEIGHTS = TaskWeights()


def sure_teacher(side: int = 16, queries: int = 5, sure: float = 4.0) -> SegOutputs:
    targets = make_targets(four_prompts(), (side, side), "cpu")
    return truthful(targets.masks, targets.boxes, targets.counts, queries, sure)


def value(student: SegOutputs, teacher: SegOutputs, temperature: float = 2.0) -> float:
    return imitation_loss(student, imitable(teacher), temperature, WEIGHTS)[0].item()


def test_the_teacher_itself_costs_nothing_in_any_order_of_queries():
    teacher = sure_teacher()
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = replace(
        teacher,
        mask_logits=teacher.mask_logits[:, order],
        query_logits=teacher.query_logits[:, order],
        boxes=teacher.boxes[:, order],
    )
    assert value(teacher, teacher) == pytest.approx(0, abs=1e-4)
    assert value(shuffled, teacher) == pytest.approx(0, abs=1e-4)


def test_everything_near_the_teacher_costs_more():
    teacher = sure_teacher()
    random = torch.Generator().manual_seed(0)
    for name in ("mask_logits", "query_logits", "boxes", "presence_logits", "semantic_logits"):
        answer = getattr(teacher, name)
        scale = 0.02 if name == "boxes" else 0.5
        for _ in range(5):
            noise = scale * torch.randn(answer.shape, generator=random)
            assert value(replace(teacher, **{name: answer + noise}), teacher) > 1e-3, name


def test_surer_than_the_teacher_costs_too():
    teacher = sure_teacher(sure=1.5)
    surer = replace(teacher, mask_logits=3 * teacher.mask_logits, presence_logits=3 * teacher.presence_logits)
    assert value(surer, teacher) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_presence_masks_and_maps_are_the_kl_of_coins(temperature: float):
    teacher, student = sure_teacher(), Answers(4, 5, 16).outputs()
    student = replace(student, boxes=teacher.boxes, query_logits=teacher.query_logits)
    _, parts = imitation_loss(student, imitable(teacher), temperature, WEIGHTS)

    def kl(mine: torch.Tensor, taught: torch.Tensor) -> float:
        coins = (Bernoulli(logits=logits.detach().double() / temperature) for logits in (taught, mine))
        return temperature**2 * kl_divergence(*coins).mean().item()

    pairs = torch.tensor([0, 0, 2]), torch.tensor([0, 1, 0])
    assert parts["distillation/presence"].item() == pytest.approx(
        0.5 * kl(student.presence_logits, teacher.presence_logits), rel=1e-4
    )
    assert parts["distillation/semantic"].item() == pytest.approx(
        kl(student.semantic_logits, teacher.semantic_logits), rel=1e-4
    )
    assert parts["distillation/masks"].item() == pytest.approx(
        kl(student.mask_logits[pairs], teacher.mask_logits[pairs]), rel=1e-4
    )
    assert parts["distillation/queries"].item() == pytest.approx(0, abs=1e-5)


def test_matched_queries_weigh_ten_background_queries():
    teacher = sure_teacher()
    student = replace(teacher, query_logits=teacher.query_logits.clone())
    student.query_logits[0, 0] = 1.0
    _, parts = imitation_loss(student, imitable(teacher), 1.0, WEIGHTS)
    coins = (Bernoulli(logits=torch.tensor(logit, dtype=torch.float64)) for logit in (4.0, 1.0))
    assert parts["distillation/queries"].item() == pytest.approx(
        10 * kl_divergence(*coins).item() / (200 * 4), rel=1e-4
    )


def test_background_queries_aim_at_the_mean_of_the_teachers():
    teacher = torch.tensor([[-3.0, -1.0, 2.0]])
    background = torch.tensor([[True, True, False]])
    for temperature in (1.0, 3.0):
        mean = (teacher[:, :2] / temperature).sigmoid().mean()
        aim = temperature * torch.logit(mean)
        grid = torch.linspace(-5, 3, 801)
        loss = background_kl(grid[None], teacher, background, temperature)
        assert grid[loss.argmin()].item() == pytest.approx(aim.item(), abs=0.011)
    assert not background_kl(grid[None], teacher, torch.zeros(1, 3).bool(), 1.0).any()


@pytest.mark.parametrize(("side", "queries"), [(16, 5), (32, 9), (8, 3)])
def test_gradient_descent_recovers_a_teacher_of_any_size(side: int, queries: int):
    teacher = sure_teacher(side, queries)
    answers = Answers(prompts=4, queries=6, side=16)
    optimizer = torch.optim.Adam(answers.parameters(), lr=0.1)
    first = value(answers.outputs(), teacher)
    for _ in range(300):
        loss, _ = imitation_loss(answers.outputs(), imitable(teacher), 2.0, WEIGHTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.03 * first
    found = answers.outputs()
    torch.testing.assert_close(found.presence_logits, teacher.presence_logits, atol=0.2, rtol=0)
    assert (found.query_logits[[0, 2]] > 0).sum(1).tolist() == [2, 1]
    torch.testing.assert_close(
        found.semantic_logits,
        resize_logits(teacher.semantic_logits, found.semantic_logits.shape[-2:]),
        atol=0.5,
        rtol=0,
    )
    for prompt, count in ((0, 2), (2, 1)):
        kept = found.query_logits[prompt] > 0
        masks = found.mask_logits[prompt][kept].sigmoid()
        wanted = resize_logits(teacher.mask_logits[prompt, :count], masks.shape[-2:]).sigmoid()
        difference = (masks[:, None] - wanted).abs().mean((2, 3))
        assert difference.amin(0).max() < 0.02


def test_hesitant_teacher_queries_are_not_imitated():
    teacher = sure_teacher()
    hesitant = replace(teacher, presence_logits=torch.full((4,), -1.0))  # scores stay below 0.27
    answers = Answers(4, 5, 16)
    loss, parts = imitation_loss(answers.outputs(), imitable(hesitant), 2.0, WEIGHTS)
    loss.backward()
    assert parts["distillation/masks"] == parts["distillation/box_l1"] == parts["distillation/queries"] == 0
    assert (answers.presence.grad != 0).all()
    assert answers.semantic.grad.any()
    assert not answers.masks.grad.any()


def test_no_more_queries_are_imitated_than_the_student_has():
    teacher = sure_teacher()
    teacher = replace(teacher, query_logits=torch.full_like(teacher.query_logits, 4.0))
    answers = Answers(4, 2, 16)
    loss, _ = imitation_loss(answers.outputs(), imitable(teacher), 2.0, WEIGHTS)
    loss.backward()
    assert loss.isfinite()
    assert (answers.masks.grad[[0, 2]].flatten(2).abs().sum(2) > 0).all()


def test_features_cost_the_share_of_variance_they_leave_unexplained():
    random = torch.Generator().manual_seed(0)
    level = torch.arange(8.0)[None, :, None, None]
    teacher = 3 * torch.randn(2, 8, 6, 6, generator=random) + level
    means = teacher.mean((0, 2, 3), keepdim=True).expand_as(teacher)
    half = means + (teacher - means) / 2
    for scale in (1.0, 100.0):
        for found, share in ((teacher, 0.0), (means, 1.0), (half, 0.25)):
            loss, parts = feature_loss({"vision": scale * found}, {"vision": scale * teacher}, ("vision",))
            assert parts["feature/vision"].item() == pytest.approx(share, abs=1e-5)
            assert loss.item() == pytest.approx(10 * share, abs=1e-4)


def test_features_of_another_grid_are_interpolated():
    ramp = torch.linspace(0, 1, 8).expand(1, 2, 8, 8)
    coarse = torch.nn.functional.avg_pool2d(ramp, 2).requires_grad_()
    loss, parts = feature_loss({"encoder": coarse}, {"encoder": ramp}, ("encoder",))
    assert parts["feature/encoder"].item() < 0.03
    loss.backward()
    assert coarse.grad.any()


def test_maps_shrink_by_averaging():
    maps = torch.arange(16.0).view(1, 4, 4)
    assert resize_logits(maps, torch.Size((2, 2)))[0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert resize_logits(maps, torch.Size((8, 8))).shape == (1, 8, 8)
