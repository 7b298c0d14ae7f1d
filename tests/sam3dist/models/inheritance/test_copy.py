from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3SinePositionEmbedding, Sam3ViTRotaryEmbedding

from sam3dist.config.distill import StudentSpec
from sam3dist.models.inheritance.even import evenly
from sam3dist.models.inheritance.inherit import inherit_weights
from sam3dist.models.segmenter import segment
from sam3dist.models.student import build_student, student_config


def numbered_axis(net: Sam3Model, axis: int) -> None:
    """Every entry of every parameter becomes its index along one axis, so that a slice tells where it was taken."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > axis:
                shape = [-1 if a == axis else 1 for a in range(parameter.dim())]
                parameter.copy_(torch.arange(parameter.shape[axis]).float().view(shape).expand_as(parameter))


def taken_from(parameter: torch.Tensor, axis: int) -> list[int]:
    """The teacher's indexes along `axis`, the same for every other position."""
    rows = parameter.movedim(axis, 0).reshape(parameter.shape[axis], -1)
    assert (rows == rows[:, :1]).all()
    return rows[:, 0].int().tolist()


def test_same_shapes_are_copied_and_only_the_unused_stays_fresh(tiny_teacher):
    student = Sam3Model(student_config(StudentSpec(), tiny_teacher.net.config))
    inherited = inherit_weights(student, tiny_teacher)
    assert inherited.sliced == ()
    assert all(name.startswith(("geometry_encoder", "text_encoder.text_projection")) for name in inherited.fresh)
    theirs = tiny_teacher.net.state_dict()
    for name in inherited.copied:
        assert torch.equal(student.state_dict()[name], theirs[name]), name
    names = {name for name, _ in student.named_parameters()}
    assert {*inherited.copied, *inherited.sliced, *inherited.fresh} == names


def test_a_shallow_student_takes_whole_layers(tiny_teacher):
    spec = StudentSpec(vision_depth=1, encoder_layers=1, decoder_layers=1, text_depth=1)
    student = Sam3Model(student_config(spec, tiny_teacher.net.config))
    inherit_weights(student, tiny_teacher)
    ours, theirs = student.state_dict(), tiny_teacher.net.state_dict()
    vision = "vision_encoder.backbone.layers.{}.attention.q_proj.weight"
    assert torch.equal(ours[vision.format(0)], theirs[vision.format(1)])  # the global layer stays
    for name in ("detr_encoder.layers.0.mlp.fc1.weight", "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight"):
        assert torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_narrow_student_keeps_the_same_channels_everywhere_and_whole_heads(tiny_teacher, axis):
    numbered_axis(tiny_teacher.net, axis)
    spec = StudentSpec(vision_width=16, text_width=16, detr_width=16)  # one head of 16 instead of two
    student = Sam3Model(student_config(spec, tiny_teacher.net.config))
    inherited = inherit_weights(student, tiny_teacher)
    residual, first_head = [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29], list(range(16))
    ours = dict(student.named_parameters())
    for name in inherited.sliced:
        if ours[name].dim() <= axis or "position" in name or "ref_point_head.layer1" in name:
            continue
        length = ours[name].shape[axis]
        heads = ("q_proj" in name or "k_proj" in name or "v_proj" in name) and axis == 0
        heads |= name.endswith(("o_proj.weight", "out_proj.weight")) and axis == 1
        if heads:
            assert taken_from(ours[name], axis) == first_head, name
        elif length == 16 and "scale_layers" not in name:
            assert taken_from(ours[name], axis) == residual, name
    assert "detr_decoder.box_rpb_embed_x.layer2.bias" in inherited.sliced  # one bias per head


def test_narrow_position_codes_are_the_kept_channels_of_wide_ones():
    wide, narrow = (Sam3SinePositionEmbedding(width // 2, normalize=True) for width in (256, 128))
    shape = (1, 1, 7, 9)
    full = wide(torch.Size(shape), "cpu", torch.float32)
    assert_close(full[:, evenly(256, 128)], narrow(torch.Size(shape), "cpu", torch.float32))
    boxes = torch.rand(1, 5, 4)
    assert_close(wide.encode_boxes(boxes)[..., evenly(512, 256, blocks=4)], narrow.encode_boxes(boxes))


def test_narrow_heads_turn_by_the_kept_rotary_frequencies(tiny_teacher):
    wide = tiny_teacher.net.config.vision_config.backbone_config
    narrow = student_config(StudentSpec(vision_width=16, vision_heads=2), tiny_teacher.net.config).vision_config
    positions = torch.tensor([[3.0, 5.0], [1.0, 0.0]])
    hidden = torch.zeros(1)
    wide_cos, wide_sin = Sam3ViTRotaryEmbedding(wide)(hidden, positions)
    cos, sin = Sam3ViTRotaryEmbedding(narrow.backbone_config)(hidden, positions)
    kept = evenly(16, 8)
    assert_close(wide_cos[..., kept], cos)
    assert_close(wide_sin[..., kept], sin)


def test_each_head_is_thinned_alike_when_heads_become_narrower(tiny_teacher):
    numbered_axis(tiny_teacher.net, 0)
    student = Sam3Model(student_config(StudentSpec(vision_width=16, vision_heads=2), tiny_teacher.net.config))
    inherit_weights(student, tiny_teacher)
    query = dict(student.named_parameters())["vision_encoder.backbone.layers.0.attention.q_proj.bias"]
    half = evenly(16, 8)
    assert taken_from(query, 0) == half + [16 + channel for channel in half]


def test_more_or_wider_heads_than_the_teachers_start_fresh(tiny_teacher):
    student = Sam3Model(student_config(StudentSpec(vision_width=32, vision_heads=4), tiny_teacher.net.config))
    fresh = inherit_weights(student, tiny_teacher).fresh
    assert "vision_encoder.backbone.layers.0.attention.q_proj.weight" in fresh
    assert "vision_encoder.backbone.layers.0.attention.o_proj.weight" in fresh
    assert "vision_encoder.backbone.layers.0.mlp.fc1.weight" not in fresh


def test_learned_positions_are_interpolated_to_another_grid(tiny_teacher):
    name = "vision_encoder.backbone.embeddings.position_embeddings"
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ramp = (y + 10 * x).reshape(1, 64, 1).expand(1, 64, 32)
    with torch.no_grad():
        dict(tiny_teacher.net.named_parameters())[name].copy_(ramp)
    student = Sam3Model(student_config(StudentSpec(image_size=56), tiny_teacher.net.config))
    inherited = inherit_weights(student, tiny_teacher)
    assert name in inherited.sliced
    learned = dict(student.named_parameters())[name].detach()[0, :, 0].view(4, 4)
    # Cell centres of the coarse grid lie half-way between two fine ones; a ramp stays that ramp inside.
    assert_close(learned[1:3, 1:3], (y + 10 * x)[::2, ::2][1:3, 1:3] + 5.5)


def test_fewer_queries_keep_their_embedding_with_their_reference_box(tiny_teacher):
    numbered_axis(tiny_teacher.net, 0)
    student = Sam3Model(student_config(StudentSpec(num_queries=5), tiny_teacher.net.config))
    inherit_weights(student, tiny_teacher)
    queries = taken_from(student.detr_decoder.query_embed.weight, 0)
    assert queries == taken_from(student.detr_decoder.reference_points.weight, 0)
    assert len(set(queries)) == 5


def test_a_student_that_lost_a_layer_sees_more_like_the_teacher_than_a_random_one(tiny_teacher, make_batch):
    def likeness(**settings: object) -> float:
        student = build_student(StudentSpec(**{"init": "copy", **settings}), tiny_teacher, seed=3).eval()
        with torch.no_grad():
            ours, theirs = (segment(net, make_batch()).features["vision"] for net in (student, tiny_teacher))
        return torch.cosine_similarity(ours.flatten(1), theirs.flatten(1)).mean().item()

    assert likeness(vision_depth=1) > 0.9
    assert likeness(vision_depth=1, init="random") < 0.5


def test_a_student_that_can_inherit_little_says_so(tiny_teacher, caplog):
    build_student(StudentSpec(init="copy", vision_width=16, detr_width=16), tiny_teacher, seed=0)
    assert not caplog.records
    build_student(StudentSpec(init="copy", vision_width=48, detr_width=48), tiny_teacher, seed=0)
    assert "of the parameters start from the teacher's" in caplog.text
