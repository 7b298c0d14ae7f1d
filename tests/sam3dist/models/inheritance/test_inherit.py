from __future__ import annotations

import json

import numpy
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.modeling_outputs import BaseModelOutput

from sam3dist.answers import imitable
from sam3dist.config.distill import DistillationConfig, StudentSpec
from sam3dist.data.samples.live import scene_batch
from sam3dist.losses import distillation_loss
from sam3dist.models.checkpoint import save_segmenter
from sam3dist.models.inheritance.inherit import inherit_weights
from sam3dist.models.inheritance.presence import correct_presence
from sam3dist.models.segmenter import Pupil, segment
from sam3dist.models.student import build_student
from sam3dist.models.teacher import load_teacher

WAYS = ("copy", "svd", "pca", "importance")
NARROW = {"vision_width": 64, "vision_depth": 3, "text_width": 32, "detr_width": 32, "encoder_layers": 1}
MARK = 0.123
SHAPES = {
    "shallow": {"vision_depth": 3, "text_depth": 1, "encoder_layers": 1, "decoder_layers": 2},
    "narrow": NARROW,
    "thin MLPs": {"vision_mlp": 100, "detr_mlp": 50},
    "thin heads": {"vision_width": 96, "vision_heads": 4},
    "another grid": {"image_size": 64, "vision_width": 96, "num_queries": 5},
    "wider": {"vision_width": 160, "text_width": 80, "vision_depth": 8},
}


class Patches(nn.Module):
    """A backbone that is no vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 128, 8, stride=8)

    def forward(self, pixels: torch.Tensor, **_: object) -> BaseModelOutput:
        hidden = self.patches(pixels).flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=hidden)


def loss(student, teacher, batch) -> float:
    torch.manual_seed(0)
    pupil = Pupil(student.eval(), teacher.feature_widths)
    config = DistillationConfig()
    with torch.no_grad():
        taught = imitable(segment(teacher, batch), config.features)
        return float(distillation_loss(segment(pupil, batch), batch, taught, config).total)


@pytest.mark.parametrize("init", WAYS)
def test_a_student_of_the_teachers_shape_answers_as_the_teacher_to_the_last_bit(init, embedded, tiny_teacher, scenes):
    for teacher in (embedded, tiny_teacher):
        student = build_student(StudentSpec(init=init), teacher, 0, scenes).eval()
        with torch.no_grad():
            ours, theirs = (segment(net, scenes[0]) for net in (student, teacher))
        assert torch.equal(ours.mask_logits, theirs.mask_logits)
        assert torch.equal(ours.query_logits, theirs.query_logits)


@pytest.mark.parametrize("init", ["pca", "importance"])
def test_another_number_of_queries_prunes_nothing_else(init, embedded, scenes):
    # Not the teacher's shape, so that everything is surveyed, planned, fitted and transferred.
    student = build_student(StudentSpec(num_queries=15, init=init), embedded, 0, scenes).eval()
    with torch.no_grad():
        ours, theirs = (segment(net, scenes[0]) for net in (student, embedded))
    assert_close(ours.semantic_logits, theirs.semantic_logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("init", WAYS)
def test_every_shape_starts_finite_and_what_does_not_fit_stays_fresh(init, shape, embedded, scenes, smaller):
    student = smaller(embedded, **shape)
    random = {name: parameter.clone() for name, parameter in student.net.named_parameters()}
    with torch.no_grad():
        for parameter in student.net.parameters():
            parameter.fill_(MARK)
    inherited = inherit_weights(student.net, embedded, init, scenes)
    with torch.no_grad():
        for name, parameter in student.net.named_parameters():
            assert bool((parameter == MARK).all()) == (name in inherited.fresh), name
            assert torch.isfinite(parameter).all(), name
            if name in inherited.fresh:
                parameter.copy_(random[name])
        answers = segment(student.eval(), scenes[0])
    assert torch.isfinite(answers.mask_logits).all()
    assert sorted(name for group in vars(inherited).values() for name in group) == sorted(random)
    assert 0.2 < inherited.share(student.net) <= 1


@pytest.mark.parametrize("shape", [{"vision_width": 64, "vision_depth": 3}, NARROW], ids=["smoke", "narrow"])
def test_every_way_starts_better_than_chance_and_measuring_better_than_copying(shape, embedded, scenes, smaller):
    unseen = scene_batch([(9, 0, k) for k in range(4)], 4)
    losses = {"random": loss(smaller(embedded, **shape), embedded, unseen)}
    for init in WAYS:
        student = smaller(embedded, **shape)
        inherit_weights(student.net, embedded, init, scenes)
        losses[init] = loss(student, embedded, unseen)
    assert all(losses[init] < losses["random"] for init in WAYS), losses
    assert max(losses["pca"], losses["importance"]) < min(losses["copy"], losses["svd"]), losses


def test_a_part_the_teacher_does_not_have_stays_fresh_and_the_rest_inherits(embedded, scenes, smaller):
    """As in students that see through a backbone of another kind."""
    student = smaller(embedded, detr_width=32)
    student.net.vision_encoder.backbone = Patches()
    for init in WAYS:
        inherited = inherit_weights(student.net, embedded, init, scenes)
        assert {name for name in inherited.fresh if "backbone" in name} == {
            "vision_encoder.backbone.patches.weight",
            "vision_encoder.backbone.patches.bias",
        }
        assert "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight" in inherited.copied
        assert "detr_decoder.box_head.layer1.weight" not in inherited.fresh


def test_pruning_in_steps_starts_from_the_student_of_a_run(embedded, scenes, tmp_path):
    """`student.like=RUN_DIR`: a distilled student is pruned further, while the large teacher goes on teaching."""
    middle = build_student(StudentSpec(vision_depth=4, init="pca"), embedded, 0, scenes)
    save_segmenter(middle, tmp_path / "checkpoint" / "student")
    (tmp_path / "report.json").write_text(json.dumps({"checkpoint": str(tmp_path / "checkpoint")}))
    like = load_teacher(str(tmp_path))
    same = build_student(StudentSpec(init="pca"), like, 0, scenes).eval()
    with torch.no_grad():
        assert torch.equal(segment(same, scenes[0]).mask_logits, segment(middle.eval(), scenes[0]).mask_logits)
    small = build_student(StudentSpec(vision_width=96, vision_depth=3, init="pca"), like, 0, scenes)
    blank = build_student(StudentSpec(vision_width=96, vision_depth=3, init="random"), like, 0)
    assert loss(small, embedded, scenes[0]) < 0.7 * loss(blank, embedded, scenes[0])


def test_presence_is_scaled_and_shifted_to_the_least_squares_line(embedded, scenes, smaller):
    student = smaller(embedded, vision_width=64, vision_depth=3)
    inherit_weights(student.net, embedded, "copy")
    pair = (embedded, student.eval())
    with torch.no_grad():
        goal, before = (torch.cat([segment(of, batch).presence_logits for batch in scenes]) for of in pair)
        correct_presence(student, goal, scenes)
        after = torch.cat([segment(student, batch).presence_logits for batch in scenes])
    slope = min(max(numpy.polyfit(before, goal, 1)[0], 0), 1)  # never surer than before
    assert_close(after, goal.mean() + slope * (before - before.mean()), rtol=1e-3, atol=1e-3)
