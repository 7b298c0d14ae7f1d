import math
from dataclasses import replace

import pytest
import torch

from sam3dist.answers import MASK_LIMIT, MOST, imitable, mask_codes, mask_logits, unfolded
from sam3dist.errors import NonFiniteError
from sam3dist.types import SegOutputs
from tests.sam3dist.cases import Answers


def outputs(queries: int = 6) -> SegOutputs:
    """Four prompts: two, none, all and one confident query."""
    said = Answers(4, queries, 16, seed=1).outputs()
    logits = torch.full((4, queries), -5.0)
    logits[0, [2, 4]] = torch.tensor([1.0, 3.0])
    logits[2] = torch.linspace(0, 2, queries)
    logits[3, 5] = 4.0
    return replace(said, query_logits=logits, presence_logits=torch.tensor([9.0, 9.0, 9.0, 0.5]))


def test_the_confident_queries_come_packed_best_first():
    said = outputs()
    found = imitable(said)
    assert found.counts == (2, 0, 6, 1)
    pairs = [(0, 4), (0, 2), *((2, query) for query in (5, 4, 3, 2, 1, 0)), (3, 5)]
    for number, (prompt, query) in enumerate(pairs):
        torch.testing.assert_close(found.boxes[number], said.boxes[prompt, query])
        limited = said.mask_logits[prompt, query].clamp(-MASK_LIMIT, MASK_LIMIT)
        torch.testing.assert_close(found.mask_logits[number], limited)
    assert (found.query_logits.diff(dim=1) <= 0).all()
    assert (~found.background).sum(1).tolist() == [2, 0, 6, 1]
    assert not any(value.requires_grad for value in vars(found).values() if isinstance(value, torch.Tensor))


def test_presence_counts_for_confidence():
    shy = replace(outputs(), presence_logits=torch.full((4,), -1.5))  # 0.18
    assert imitable(shy).counts == (0, 0, 0, 0)


def test_no_more_than_the_best_are_imitated_and_the_others_are_no_background():
    many = imitable(replace(outputs(MOST + 8), query_logits=torch.full((4, MOST + 8), 4.0)))
    assert many.counts == (MOST, MOST, MOST, MOST)
    assert not many.background.any()


def test_features_come_where_they_are_asked_for():
    assert imitable(outputs()).features == {}
    assert list(imitable(outputs(), ("encoder",)).features) == ["encoder"]


@pytest.mark.parametrize("name", ["mask_logits", "query_logits", "presence_logits", "semantic_logits", "boxes"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_teacher_that_answers_nonsense_is_named(name: str, bad: float):
    broken = getattr(outputs(), name).detach().clone()
    broken.view(-1)[3] = bad
    with pytest.raises(NonFiniteError, match=f"teacher's {name}"):
        imitable(replace(outputs(), **{name: broken}))


def test_a_teacher_with_broken_features_is_named():
    said = outputs()
    with torch.no_grad():
        said.features["encoder"][0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"teacher's features\.encoder"):
        imitable(said, ("vision", "encoder"))
    assert imitable(said, ("vision",)).counts == (2, 0, 6, 1)


def test_half_precision_masks_do_not_trip_the_finite_check():
    masks = torch.full((4, 240, 64, 64), 12.0, dtype=torch.float16)  # adds up to far more than float16 holds
    imitable(replace(outputs(240), mask_logits=masks))


def test_a_stored_logit_is_near_the_one_said_and_never_changes_sides():
    said = torch.cat([torch.linspace(-30, 30, 60_001), torch.tensor([1e-7, -1e-7, 0.0])])
    codes = mask_codes(said)
    assert codes.dtype == torch.uint8
    assert codes.max() == 127
    found = mask_logits(codes)
    assert ((found > 0) == (said >= 0)).all()
    wrong = (found - said.clamp(-MASK_LIMIT, MASK_LIMIT)).abs()
    assert wrong.max() < 0.37
    assert wrong[said.abs() < 0.25].max() < 0.013
    assert (mask_codes(found) == codes).all(), "storing what was stored changes nothing"


def test_windows_unfold_to_the_maps_that_a_loop_would_make():
    shape = torch.Generator().manual_seed(0)
    size, windows, cells, expected = (9, 13), [], [], torch.zeros(6, 9, 13, dtype=torch.uint8)
    for number, (top, left, rows, columns) in enumerate(
        [(0, 0, 9, 13), (0, 0, 0, 0), (8, 12, 1, 1), (3, 0, 2, 13), (0, 5, 9, 1), (2, 2, 5, 4)]
    ):
        codes = torch.randint(1, 128, (rows, columns), generator=shape, dtype=torch.uint8)
        expected[number, top : top + rows, left : left + columns] = codes
        windows.append([top, left, rows, columns])
        cells.append(codes.flatten())
    assert torch.equal(unfolded(torch.cat(cells), torch.tensor(windows, dtype=torch.int32), size), expected)
