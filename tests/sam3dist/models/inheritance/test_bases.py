from __future__ import annotations

import copy

import torch
from torch.testing import assert_close

from sam3dist.models.inheritance.absorb import absorbed_layers
from sam3dist.models.inheritance.bases import balanced, basis_of_moments
from sam3dist.models.inheritance.fit import fitted_reading, planned_reading
from sam3dist.models.inheritance.plan import Plan, even_plan
from sam3dist.models.inheritance.regression import Guess, Pairs
from sam3dist.models.inheritance.spaces import PATCH_NORM, STACKS
from sam3dist.models.inheritance.transfer import transfer
from sam3dist.models.segmenter import segment


def random_moments(width: int) -> torch.Tensor:
    tokens = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(0))
    return tokens.T @ tokens


def test_balanced_vectors_are_orthonormal_and_add_up_to_nothing():
    for width in (2, 5, 64):
        columns = balanced(width)
        assert_close(columns.T @ columns, torch.eye(width - 1, dtype=torch.float64))
        assert_close(columns.sum(0), torch.zeros(width - 1, dtype=torch.float64))


def test_a_basis_keeps_the_lengths_of_a_stream_that_fits_and_its_mean_of_zero():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(7, 20, generator=generator)
    tokens = torch.randn(100, 7, generator=generator) @ (directions - directions.mean(1, keepdim=True))
    turned = tokens @ basis_of_moments(tokens.T @ tokens, 8)
    assert_close(turned.norm(dim=1), tokens.norm(dim=1))
    assert_close(turned.sum(1), torch.zeros(100), atol=1e-4, rtol=0)


def test_both_streams_turned_at_full_width_give_the_teachers_answers(embedded, scenes, smaller):
    """LayerNorms folded, everything centred: exact, but for what no basis can turn.

    That is the gain of the first LayerNorm of the patches, where it differs between channels, and the mean over
    channels of what the neck reads; the teacher is changed so that both are trivial.
    """
    teacher = copy.deepcopy(embedded)
    with torch.no_grad():
        teacher.net.get_parameter(f"{PATCH_NORM}.weight").fill_(0.7)
        for name, parameter in teacher.net.named_parameters():
            neck = name.startswith("vision_encoder.neck") and parameter.dim() == 4
            if neck and parameter.shape[0] == 128:
                parameter -= parameter.mean(0, keepdim=True)
            elif neck and parameter.shape[1] == 128:
                parameter -= parameter.mean(1, keepdim=True)
    student = smaller(teacher)
    bases = {
        stream: basis_of_moments(random_moments(width), width) for stream, width in (("vision", 128), ("text", 64))
    }
    plan = Plan(even_plan(student.net, teacher.net).layers, bases=bases)
    with torch.no_grad():
        theirs = segment(teacher, scenes[0])
        for reading in (planned_reading(plan, teacher.net), fitted_reading(plan, student.net, teacher, scenes)):
            inherited = transfer(plan, reading, student.net, teacher.net)
            assert len(inherited.projected) > 100
            ours = segment(student.eval(), scenes[0])
            assert_close(ours.features["vision"], theirs.features["vision"], rtol=0, atol=2e-3)
            assert_close(ours.semantic_logits, theirs.semantic_logits, rtol=0, atol=2e-2)


def test_a_guess_is_the_least_squares_solution_and_stays_at_a_prior_that_fits():
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(500, 4, generator=generator)
    true = torch.randn(3, 4, generator=generator)
    goal = given @ true.T + torch.tensor([1.0, -2.0, 3.0])
    pairs = Pairs()
    pairs.add(goal[:200], given[:200])
    pairs.add(goal[200:], given[200:])
    fits = pairs.guess(Guess(true, torch.zeros(3)))
    assert_close(fits.matrix, true, rtol=1e-5, atol=1e-5)
    noisy = goal + 0.5 * torch.randn(goal.shape, generator=generator)
    pairs = Pairs()
    pairs.add(noisy, given)
    expected = torch.linalg.lstsq(torch.cat([given, torch.ones(500, 1)], 1), noisy).solution
    found = pairs.guess(pairs.nothing)
    assert_close(found.matrix, expected[:4].T, rtol=0.02, atol=0.02)
    assert_close(found.constant, expected[4], rtol=0.02, atol=0.02)


def test_a_missing_layer_that_only_added_a_constant_is_taken_over_whole(embedded, scenes, smaller):
    teacher = copy.deepcopy(embedded)
    last = f"{STACKS['text']}1"
    with torch.no_grad():
        for name in ("self_attn.out_proj.weight", "self_attn.out_proj.bias", "mlp.fc2.weight"):
            teacher.net.get_parameter(f"{last}.{name}").zero_()
    student = smaller(teacher, text_depth=1)
    plan = even_plan(student.net, teacher.net)
    (name, guess), *others = absorbed_layers(plan, teacher, scenes).items()
    assert (name, others) == (f"{STACKS['text']}0.mlp.fc2", [])
    assert_close(guess.matrix, torch.zeros(64, 256), rtol=0, atol=1e-5)
    assert_close(guess.constant, teacher.net.get_parameter(f"{last}.mlp.fc2.bias"))
    transfer(plan, fitted_reading(plan, student.net, teacher, scenes), student.net, teacher.net)
    with torch.no_grad():
        ours, theirs = (segment(net, scenes[0]) for net in (student.eval(), teacher))
    assert_close(ours.semantic_logits, theirs.semantic_logits, rtol=0, atol=1e-3)
