"""Answers of teachers of other kinds, as SegOutputs."""

import torch

from sam3dist.answers import imitable
from sam3dist.teaching.outputs import instance_outputs, semantic_outputs


def test_a_semantic_map_is_one_instance_with_the_box_around_it():
    logits = torch.full((1, 4, 8), -2.0)
    logits[0, 1:3, 2] = 3.0
    logits[0, 2, 5] = 1.0
    answers = imitable(semantic_outputs(logits, torch.tensor([5.0])))
    assert answers.counts == (1,)
    assert answers.boxes.tolist() == [[2 / 8, 1 / 4, 6 / 8, 3 / 4]]
    assert torch.equal(answers.mask_logits, logits)
    assert torch.equal(answers.semantic_logits, logits)
    assert answers.presence_logits.tolist() == [5]


def test_an_absent_phrase_marks_nothing_whatever_its_map_says():
    outputs = semantic_outputs(torch.ones(2, 4, 4), torch.tensor([1.0, -1.0]))
    assert (outputs.semantic_logits[1] == -8).all()
    assert imitable(outputs).counts == (1, 0)


def test_instances_go_to_their_prompts_and_the_rest_is_background():
    masks = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    boxes = torch.tensor([[0, 0, 0.1, 0.1], [0, 0, 0.2, 0.2], [0, 0, 0.3, 0.3]])
    scores = torch.tensor([1.0, 3.0, 2.0])
    outputs = instance_outputs(masks, boxes, scores, [1, 0, 2], torch.tensor([8.0, -8.0, 8.0]))
    assert outputs.query_logits.tolist() == [[1, -8, -8], [-8, -8, -8], [3, 2, -8]]
    assert outputs.mask_logits[:, :, 0, 0].tolist() == [[0, -8, -8], [-8, -8, -8], [1, 2, -8]]
    assert outputs.semantic_logits[:, 0, 0].tolist() == [0, -8, 2]
    answers = imitable(outputs)
    assert answers.counts == (1, 0, 2)
    assert torch.equal(answers.boxes, boxes)
    assert answers.background.any(1).all()


def test_prompts_without_any_instance_have_background_only():
    outputs = instance_outputs(
        torch.zeros(0, 2, 2), torch.zeros(0, 4), torch.zeros(0), [0, 0], torch.tensor([-8.0, -8.0])
    )
    assert outputs.mask_logits.shape == (2, 1, 2, 2)
    assert (outputs.query_logits == -8).all()
