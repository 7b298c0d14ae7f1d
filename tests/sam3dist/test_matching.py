import itertools
import math

import pytest
import torch

from sam3dist.errors import NonFiniteError
from sam3dist.matching import match, matching_cost


def random_boxes(*shape: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, *shape, 2, generator=random) / 2
    return torch.cat([corner, corner + side + 0.01], dim=-1)


def cost_by_hand(logit: float, box: list[float], wanted: list[float]) -> float:
    p = 1 / (1 + math.exp(-logit))
    classes = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)

    def centre(b: list[float]) -> list[float]:
        return [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]]

    l1 = sum(abs(a - b) for a, b in zip(centre(box), centre(wanted), strict=True))
    width = max(0, min(box[2], wanted[2]) - max(box[0], wanted[0]))
    height = max(0, min(box[3], wanted[3]) - max(box[1], wanted[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, wanted)]
    union = sum(areas) - width * height
    hull = (max(box[2], wanted[2]) - min(box[0], wanted[0])) * (max(box[3], wanted[3]) - min(box[1], wanted[1]))
    return 2 * classes + 5 * l1 - 2 * (width * height / union - (hull - union) / hull)


def test_cost_is_focal_class_and_l1_and_giou():
    logits, boxes, targets = torch.tensor([[-1.5, 0.2, 3.0]]), random_boxes(1, 3, seed=0), random_boxes(2, seed=1)
    cost = matching_cost(logits, boxes, targets, torch.tensor([0, 0]))
    expected = [
        [cost_by_hand(logits[0, q].item(), boxes[0, q].tolist(), targets[n].tolist()) for q in range(3)]
        for n in range(2)
    ]
    torch.testing.assert_close(cost, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("queries", "counts"), [(6, (3, 0, 1, 4)), (2, (3, 1)), (4, (4,)), (1, (5, 0))])
def test_matches_cost_least_of_all_permutations(queries: int, counts: tuple[int, ...]):
    logits = torch.randn(len(counts), queries, generator=torch.Generator().manual_seed(queries))
    boxes, targets = random_boxes(len(counts), queries, seed=2), random_boxes(sum(counts), seed=3)
    owner = torch.tensor([prompt for prompt, count in enumerate(counts) for _ in range(count)])
    cost = matching_cost(logits, boxes, targets, owner)
    found = match(logits, boxes, targets, counts)
    for prompt, count in enumerate(counts):
        mine = found.prompt == prompt
        query, target = found.query[mine], found.target[mine]
        assert len(query) == len(set(query.tolist())) == len(set(target.tolist())) == min(count, queries)
        assert (owner[target] == prompt).all()
        rows = range(sum(counts[:prompt]), sum(counts[: prompt + 1]))
        table = cost[rows.start : rows.stop]
        table = table if count <= queries else table.T
        best = min(
            sum(line[column].item() for line, column in zip(table, order, strict=True))
            for order in itertools.permutations(range(table.shape[1]), table.shape[0])
        )
        assert cost[target, query].sum().item() == pytest.approx(best, abs=1e-5)


def test_nothing_to_match_gives_no_pairs():
    found = match(torch.zeros(2, 3), random_boxes(2, 3, seed=0), torch.zeros(0, 4), (0, 0))
    assert [len(index) for index in found] == [0, 0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_named(bad: float):
    boxes = random_boxes(2, 3, seed=0)
    boxes[1, 2, 0] = bad
    with pytest.raises(NonFiniteError, match="prompt 1 "):
        match(torch.zeros(2, 3), boxes, random_boxes(2, seed=1), (1, 1))
