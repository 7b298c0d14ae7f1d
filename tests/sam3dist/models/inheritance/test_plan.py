"""What is worth least goes first, in teachers in which we made it worth nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from sam3dist.models.inheritance.plan import kept_entries, measured_plan, weight_plan
from sam3dist.models.inheritance.spaces import SHARED_HEADS, STACKS, space_of
from sam3dist.models.inheritance.survey import Survey, survey_activity
from sam3dist.models.inheritance.taylor import survey_taylor

SURVEYS = {"pca": survey_activity, "importance": survey_taylor}
both = pytest.mark.parametrize("survey", SURVEYS.values(), ids=SURVEYS.keys())


@pytest.fixture
def maimed(embedded):
    """A copy of the embedded teacher, for a test to change."""
    with torch.no_grad():
        yield copy.deepcopy(embedded)


@both
@pytest.mark.parametrize("gone", [0, 1])
def test_a_layer_that_does_nothing_is_dropped_first(survey, gone, maimed, scenes, smaller):
    for stack in ("text", "encoder"):
        for name, parameter in maimed.net.named_parameters():
            if name.startswith(f"{STACKS[stack]}{gone}.") and ("o_proj" in name or "out_proj" in name or "fc2" in name):
                parameter.zero_()
    student = smaller(maimed, text_depth=1, encoder_layers=1)
    plan = measured_plan(student.net, maimed.net, survey(maimed, scenes))
    assert plan.layers["text"] == plan.layers["encoder"] == [1 - gone]


@both
def test_vision_layers_keep_their_kind_and_lose_the_idle_one(survey, maimed, scenes, smaller):
    for name, parameter in maimed.net.named_parameters():
        if name.startswith(f"{STACKS['vision']}2.") and ("o_proj" in name or "fc2" in name):
            parameter.zero_()
    student = smaller(maimed, vision_depth=5)
    layers = measured_plan(student.net, maimed.net, survey(maimed, scenes)).layers["vision"]
    assert 2 not in layers
    assert layers == sorted(set(layers))
    for place, layer in enumerate(layers):
        windows = [
            net.net.vision_encoder.backbone.layers[n].window_size for net, n in ((student, place), (maimed, layer))
        ]
        assert bool(windows[0]) == bool(windows[1])


@both
def test_heads_and_hidden_channels_that_nobody_reads_are_dropped_first(survey, maimed, scenes, smaller):
    vision = f"{STACKS['vision']}0"
    maimed.net.get_parameter(f"{vision}.attention.o_proj.weight")[:, 32:64] = 0  # head 1 of 4
    idle = torch.randperm(384, generator=torch.Generator().manual_seed(0))[:192].tolist()
    maimed.net.get_parameter(f"{vision}.mlp.fc2.weight")[:, idle] = 0
    student = smaller(maimed, vision_width=96, vision_mlp=192)
    for plan in (
        measured_plan(student.net, maimed.net, survey(maimed, scenes)),
        weight_plan(student.net, maimed.net),
    ):
        assert plan.units[f"{vision}.attention"] == [0, 2, 3]
        assert plan.units[f"{vision}.mlp"] == sorted({*range(384)} - {*idle})


def test_channels_of_a_stream_to_which_nobody_writes_are_dropped_first(maimed, scenes, smaller):
    idle = list(range(0, 64, 2))
    for name, parameter in maimed.net.named_parameters():
        if name.startswith("text_encoder.text_model.") and ("out_proj" in name or "fc2" in name):
            parameter[idle] = 0
        elif name.endswith(("token_embedding.weight", "position_embedding.weight")):
            parameter[:, idle] = 0
    student = smaller(maimed, text_width=32)
    basis = measured_plan(student.net, maimed.net, survey_taylor(maimed, scenes)).bases["text"]
    assert torch.equal(basis, torch.eye(64)[:, 1::2])


@both
def test_the_decoders_position_bias_keeps_the_heads_of_every_layer(survey, embedded, scenes, smaller):
    student = smaller(embedded, detr_width=32)
    plan = measured_plan(student.net, embedded.net, survey(embedded, scenes))
    heads = plan.units[SHARED_HEADS]
    assert len(heads) == 2
    for side in ("x", "y"):
        bias = f"detr_decoder.box_rpb_embed_{side}.layer2.bias"
        assert kept_entries(plan, bias, 0, student.net, embedded.net, 4) == heads
    for layer in range(3):
        query = f"detr_decoder.layers.{layer}.vision_cross_attn.q_proj.weight"
        kept = kept_entries(plan, query, 0, student.net, embedded.net, 64)
        assert kept == [16 * head + channel for head in heads for channel in range(16)]


def test_every_parameter_of_a_tower_has_its_stream_on_one_axis(embedded):
    widths = {"vision": 128, "text": 64}
    for name, parameter in embedded.net.named_parameters():
        for tower, prefix in (("vision", "vision_encoder.backbone."), ("text", "text_encoder.text_model.")):
            if name.startswith(prefix):
                axes = [axis for axis in range(parameter.dim()) if space_of(name, axis) == tower]
                inner = name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias", "fc1.bias"))
                assert len(axes) == (0 if inner else 1), name
                assert all(parameter.shape[axis] == widths[tower] for axis in axes)


def test_scores_add_up_over_batches():
    survey = Survey()
    survey.add(survey.units, "a", torch.tensor([1.0, 2.0]))
    survey.add(survey.units, "a", torch.tensor([1.0, 0.0]))
    assert survey.units["a"].tolist() == [2.0, 2.0]
