import math
from dataclasses import replace

import pytest
import torch

from sam3dist.boxes import iou_and_giou
from sam3dist.config.distill import TaskWeights
from sam3dist.matching import Matches
from sam3dist.targets import Targets, make_targets
from sam3dist.task import class_loss, task_loss
from sam3dist.types import SegOutputs
from tests.sam3dist.cases import Answers, batch_of, four_prompts, rectangle, truthful

WEIGHTS = TaskWeights()


def truth(targets: Targets, queries: int = 5) -> SegOutputs:
    return truthful(targets.masks, targets.boxes, targets.counts, queries)


def value(outputs: SegOutputs, targets: Targets, **weights: object) -> float:
    return task_loss(outputs, targets, WEIGHTS.model_copy(update=weights))[0].item()


def test_class_loss_by_its_definition():
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.0, 1.0]])
    matches = Matches(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
    unmatched = torch.tensor([[True] * 3, [False] * 3])
    loss = class_loss(logits, matches, torch.tensor([0.64]), unmatched)

    def p(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    aim = p(-1) ** 0.25 * 0.64**0.75
    matched = -10 * (aim * math.log(p(-1)) + (1 - aim) * math.log(1 - p(-1)))
    expected = [-(p(0.5) ** 2) * math.log(1 - p(0.5)), matched, -(p(2) ** 2) * math.log(1 - p(2)), 0, 0, 0]
    assert loss.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_a_matched_query_aims_at_one_percent_at_least():
    loss = class_loss(
        torch.zeros(1, 1), Matches(*torch.zeros(3, 1, dtype=torch.int64)), torch.zeros(1), torch.ones(1, 1).bool()
    )
    assert loss.item() == pytest.approx(10 * math.log(2))  # undecided costs log 2 whatever the aim


def test_the_truth_costs_next_to_nothing():
    targets = make_targets(four_prompts(), (16, 16), "cpu")
    total, parts = task_loss(truth(targets), targets, WEIGHTS)
    assert total.item() < 1e-2
    assert all(0 <= part.item() < 1e-3 for part in parts.values())


def test_everything_near_the_truth_costs_more():
    targets = make_targets(four_prompts(), (16, 16), "cpu")
    best = truth(targets)
    least = value(best, targets)
    random = torch.Generator().manual_seed(0)
    wrong_boxes = best.boxes.clone()
    wrong_boxes[0, 0, 2] += 0.03
    wrong_cell, wrong_map, missed, extra = (
        tensor.clone() for tensor in (best.mask_logits, best.semantic_logits, best.query_logits, best.query_logits)
    )
    wrong_cell[2, 0, 3, 3] *= -1
    wrong_map[0, 0, 0] *= -1
    missed[0, 1] *= -1
    extra[2, 3] *= -1
    worse = {
        "box": replace(best, boxes=wrong_boxes),
        "cell": replace(best, mask_logits=wrong_cell),
        "map": replace(best, semantic_logits=wrong_map),
        "missed instance": replace(best, query_logits=missed),
        "invented instance": replace(best, query_logits=extra),
        "swapped masks": replace(best, mask_logits=best.mask_logits.flip(1)),
        "one presence": replace(best, presence_logits=best.presence_logits * torch.tensor([1, -1, 1, 1])),
        "unsure": replace(best, presence_logits=best.presence_logits * 0.5),
    }
    for _ in range(10):
        noise = torch.randn(best.mask_logits.shape, generator=random)
        assert value(replace(best, mask_logits=best.mask_logits * 0.3 + noise), targets) > least
    for name, outputs in worse.items():
        assert value(outputs, targets) > least + 1e-3, name


@pytest.mark.parametrize("kind", ["focal", "bce"])
def test_gradient_descent_recovers_the_targets_in_every_layer(kind: str):
    targets = make_targets(four_prompts(), (16, 16), "cpu")
    answers = Answers(prompts=4, queries=6, side=16, layers=3)
    optimizer = torch.optim.Adam(answers.parameters(), lr=0.1)
    weights = WEIGHTS.model_copy(update={"mask_kind": kind})
    first = task_loss(answers.outputs(), targets, weights)[0].item()
    for _ in range(250):
        loss, _ = task_loss(answers.outputs(), targets, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first
    outputs = answers.outputs()
    for layer in (outputs, *outputs.auxiliary):
        assert ((layer.presence_logits > 0) == targets.present).all()
        scores = layer.query_logits.sigmoid()
        assert (scores[[0, 2]] > 0.5).sum(1).tolist() == [2, 1]
        kept = [layer.boxes[prompt][scores[prompt] > 0.5] for prompt in (0, 2)]
        iou, _ = iou_and_giou(torch.cat(kept)[:, None], targets.boxes)
        assert iou.amax(0).min() > 0.9
    kept_masks = torch.cat([outputs.mask_logits[p][outputs.query_logits[p] > 0] > 0 for p in (0, 2)])
    assert {tuple(mask.flatten().tolist()) for mask in kept_masks} == {
        tuple(mask.flatten().tolist()) for mask in targets.masks
    }
    assert torch.equal(outputs.semantic_logits[[0, 2]] > 0, targets.semantic[[0, 2]])


def test_a_batch_of_negatives_teaches_presence_alone():
    targets = make_targets(batch_of([], []), (8, 8), "cpu")
    answers = Answers(prompts=2, queries=3, side=8, layers=2)
    loss, parts = task_loss(answers.outputs(), targets, WEIGHTS)
    loss.backward()
    assert {name for name, part in parts.items() if part.item() != 0} == {"task/presence", "task/auxiliary"}
    assert (answers.presence.grad > 0).all()
    # Every answer stays in the graph, or DDP would wait for gradients that never come.
    for tensor in (answers.masks, answers.queries, answers.centres, answers.semantic):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_more_instances_than_queries_teaches_as_many_as_there_are():
    tiles = [rectangle(8 * row, 8 * column, 8 * row + 8, 8 * column + 8) for row in range(4) for column in range(2)]
    targets = make_targets(batch_of(tiles), (8, 8), "cpu")
    answers = Answers(prompts=1, queries=3, side=8)
    loss, parts = task_loss(answers.outputs(), targets, WEIGHTS)
    loss.backward()
    assert loss.isfinite()
    assert (answers.masks.grad.flatten(2).abs().sum(2) > 0).all()
    assert parts["task/box_giou"] < 3 * 2 / 8 + 1e-6  # three pairs, each at most 2, over eight boxes


def test_unknown_instances_are_not_pushed_down():
    masks = [rectangle(0, 0, 12, 16)]
    gradients = []
    for exhaustive in (True, False):
        answers = Answers(prompts=1, queries=4, side=16)
        targets = make_targets(batch_of(masks, exhaustive=[exhaustive]), (16, 16), "cpu")
        task_loss(answers.outputs(), targets, WEIGHTS)[0].backward()
        gradients.append((answers.queries.grad[0, 0], answers.semantic.grad))
    assert (gradients[0][0] != 0).sum() == 4
    assert (gradients[1][0] != 0).sum() == 1  # the matched query
    assert gradients[0][1].any()
    assert not gradients[1][1].any()


def test_crowds_count_neither_for_nor_against():
    crowd = rectangle(0, 16, 32, 32)
    targets = make_targets(batch_of([rectangle(0, 0, 12, 16)], ignore=[crowd]), (16, 16), "cpu")
    answers = Answers(prompts=1, queries=3, side=16)
    outputs = replace(
        answers.outputs(),
        # The first is the instance, the second on the crowd, the third on the background.
        boxes=torch.tensor([[[0.0, 0.0, 0.5, 0.375], [0.45, 0.1, 0.9, 0.9], [0.05, 0.5, 0.6, 0.9]]]),
    )
    task_loss(outputs, targets, WEIGHTS)[0].backward()
    assert (answers.queries.grad[0, 0] != 0).tolist() == [True, False, True]
    grad = answers.semantic.grad[0]
    assert not grad[:, 8:].any()
    assert (grad[:, :8] != 0).all()


def test_a_prompt_present_only_as_a_crowd_teaches_presence_alone():
    batch = batch_of([], present=[True], ignore=[rectangle(0, 0, 8, 8)])
    answers = Answers(prompts=1, queries=3, side=8)
    task_loss(answers.outputs(), make_targets(batch, (8, 8), "cpu"), WEIGHTS)[0].backward()
    assert (answers.presence.grad < 0).all()
    assert not answers.queries.grad.any()
    assert not answers.semantic.grad.any()


def test_presence_is_half_the_cross_entropy():
    targets = make_targets(batch_of([rectangle(0, 0, 8, 8)], []), (8, 8), "cpu")
    outputs = replace(truth(targets), presence_logits=torch.tensor([0.7, 0.4]))
    expected = 0.25 * (math.log(1 + math.exp(-0.7)) + math.log(1 + math.exp(0.4)))
    assert task_loss(outputs, targets, WEIGHTS)[1]["task/presence"].item() == pytest.approx(expected, rel=1e-5)


def test_total_is_the_weighted_sum_of_its_pieces():
    targets = make_targets(four_prompts(), (16, 16), "cpu")
    total, parts = task_loss(Answers(4, 6, 16, layers=2).outputs(), targets, WEIGHTS)
    weights = {
        "class": 20,
        "presence": 20,
        "box_l1": 5,
        "box_giou": 2,
        "mask": 200,
        "dice": 10,
        "semantic": 20,
        "semantic_dice": 30,
        "auxiliary": 1,
    }
    assert set(parts) == {f"task/{name}" for name in weights}
    expected = sum(weight * parts[f"task/{name}"].item() for name, weight in weights.items())
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_each_earlier_layer_costs_what_it_would_cost_as_the_last():
    targets = make_targets(four_prompts(), (16, 16), "cpu")
    outputs = Answers(4, 6, 16, layers=3).outputs()
    _, parts = task_loss(outputs, targets, WEIGHTS)
    alone = [
        task_loss(
            replace(
                outputs,
                auxiliary=(),
                query_logits=layer.query_logits,
                boxes=layer.boxes,
                presence_logits=layer.presence_logits,
            ),
            targets,
            WEIGHTS.model_copy(update={"mask": 0, "dice": 0, "semantic": 0, "semantic_dice": 0}),
        )[0].item()
        for layer in outputs.auxiliary
    ]
    assert parts["task/auxiliary"].item() == pytest.approx(sum(alone), rel=1e-5)
