from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam3dist.answers import decoded, imitable, unfolded
from sam3dist.data.rejects import Reject
from sam3dist.teaching.codec import (
    Answer,
    decode_answer,
    decode_maps,
    encode_answers,
    encode_maps,
    stack_answers,
)
from sam3dist.teaching.fidelity import fidelity
from sam3dist.types import SegOutputs


def teacher(prompts: int = 5, queries: int = 20, side: int = 72, seed: int = 0) -> SegOutputs:
    """Blobs for masks; the second prompt is a negative."""
    random = torch.Generator().manual_seed(seed)
    coarse = 9 * torch.randn(prompts, queries, 6, 6, generator=random) - 4
    masks = F.interpolate(coarse, size=(side, side), mode="bicubic")
    corners = torch.rand(prompts, queries, 2, 2, generator=random).sort(dim=2).values
    presence = torch.full((prompts,), 6.0)
    presence[1:2] = -6.0
    return SegOutputs(
        masks,
        2 * torch.randn(prompts, queries, generator=random) - 1.5,
        corners.flatten(2),
        presence,
        masks[:, 0],
        {"vision": torch.randn(2, 8, 6, 6), "encoder": torch.randn(prompts, 8, 6, 6)},
    )


def test_what_is_read_is_what_was_said_but_for_the_codes():
    said = imitable(teacher())
    found = decoded(stack_answers([decode_answer(data) for data in encode_answers(said)], {}))
    assert found.counts == said.counts
    assert max(said.counts) > 3
    assert said.counts[1] == 0
    assert torch.equal(found.background, said.background)
    torch.testing.assert_close(found.presence_logits, said.presence_logits)
    torch.testing.assert_close(found.query_logits, said.query_logits, atol=0.003, rtol=0)
    torch.testing.assert_close(found.boxes, said.boxes, atol=1e-5, rtol=0)
    for one, other in ((found.mask_logits, said.mask_logits), (found.semantic_logits, said.semantic_logits)):
        torch.testing.assert_close(one, other, atol=0.37, rtol=0)
        assert torch.equal(one > 0, other > 0)


def test_storing_is_measured_against_the_masks_without_their_limit():
    outputs = teacher(side=72)
    measured = fidelity(outputs, encode_answers(imitable(outputs)))
    assert measured.masks == sum(imitable(outputs).counts)
    assert measured.scores == outputs.query_logits.numel()
    assert measured.means()["mask_iou"] > 0.99
    assert measured.means()["score_kl"] < 1e-6
    # What is measured notices an error: the answers of another teacher.
    other = fidelity(outputs, encode_answers(imitable(replace(outputs, mask_logits=outputs.mask_logits + 1.0))))
    assert other.means()["mask_iou"] < 0.95
    assert other.means()["score_kl"] == measured.means()["score_kl"]


def test_a_negative_takes_next_to_nothing():
    outputs = teacher(queries=200, side=288)
    outputs = replace(
        outputs, semantic_logits=outputs.semantic_logits - 40 * (outputs.presence_logits < 0)[:, None, None]
    )
    sizes = [len(data) for data in encode_answers(imitable(outputs))]
    assert sizes[1] < 500


def test_teachers_may_answer_with_different_numbers_of_queries():
    few, many = (encode_answers(imitable(teacher(1, queries))) for queries in (3, 20))
    stacked = stack_answers([decode_answer(data) for data in (*few, *many)], {})
    assert stacked.query_logits.shape == (2, 20)
    alone = imitable(teacher(1, 3))
    assert stacked.background[0].sum() == alone.background.sum(), "the places of missing queries are no background"


def test_features_keep_two_digits():
    maps = torch.randn(3, 8, 5, 5) * torch.logspace(-2, 2, 8)[None, :, None, None]
    maps[0, 3] = 0
    found = [decode_maps(data) for data in encode_maps(maps)]
    back = np.stack([each.codes * each.scales[:, None, None] for each in found])
    largest = maps.abs().amax((2, 3), keepdim=True).numpy()
    assert (np.abs(back - maps.numpy()) <= largest / 253).all()


def maps_of(answer: Answer) -> torch.Tensor:
    """The semantic map and the masks, [1 + K, h, w]."""
    windows = torch.from_numpy(answer.windows.astype(np.int32))
    return unfolded(torch.tensor(answer.codes), windows, answer.size)


def test_mirrored_answers_mirror_back():
    outputs = teacher()
    for data, mask in zip(encode_answers(imitable(outputs)), imitable(outputs).semantic_logits, strict=True):
        answer = decode_answer(data)
        mirrored = answer.flipped()
        assert torch.equal(maps_of(mirrored), maps_of(answer).flip(2))
        assert (mirrored.boxes[:, 2] >= mirrored.boxes[:, 0]).all()
        back = mirrored.flipped()
        assert np.array_equal(back.codes, answer.codes)
        assert np.array_equal(back.windows, answer.windows)
        assert np.array_equal(back.boxes, answer.boxes)
        assert torch.equal(maps_of(mirrored)[0] > 63, mask.flip(1) >= 0)
    maps = decode_maps(encode_maps(outputs.features["vision"])[0])
    assert np.array_equal(maps.flipped().codes, maps.codes[:, :, ::-1])


@pytest.mark.parametrize("decode", [decode_answer, decode_maps])
def test_damaged_bytes_are_set_aside(decode):
    outputs = teacher()
    answers, maps = encode_answers(imitable(outputs)), encode_maps(outputs.features["vision"])
    whole = answers[0] if decode is decode_answer else maps[0]
    damaged = [b"", whole[:5], whole[:-1], b"\xff" * len(whole)]
    for data in damaged:
        with pytest.raises(Reject, match="corrupt answer"):
            decode(data)
    decode(whole)
