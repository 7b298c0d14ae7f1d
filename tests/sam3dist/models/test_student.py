from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import Sam3Config, Sam3Model

from sam3dist.config.distill import StudentSpec
from sam3dist.errors import ConfigError
from sam3dist.models.checkpoint import load_segmenter, save_segmenter
from sam3dist.models.segmenter import Pupil, freeze_unused, segment
from sam3dist.models.size import model_size
from sam3dist.models.student import build_student, student_config

SPECS = {
    "same": StudentSpec(),
    "shallow": StudentSpec(init="copy", vision_depth=1, encoder_layers=1, decoder_layers=1, text_depth=1),
    "narrow": StudentSpec(init="copy", vision_width=16, text_width=16, detr_width=16),
    "other heads": StudentSpec(init="copy", vision_width=24, vision_heads=3, vision_mlp=40, detr_mlp=24),
    "small input": StudentSpec(init="copy", image_size=56, num_queries=5),
    "large input": StudentSpec(init="copy", image_size=168),
    "wider": StudentSpec(init="copy", vision_width=48, detr_width=48, text_width=48, vision_depth=3),
    "random": StudentSpec(init="random", vision_width=16),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_every_shape_answers_learns_and_loads_as_a_plain_sam3model(spec, tiny_teacher, make_batch, tmp_path):
    student = build_student(spec, tiny_teacher, seed=1)
    batch = make_batch()
    outputs = segment(student, batch, auxiliary=True)
    parts = [outputs.mask_logits, outputs.query_logits, outputs.boxes, outputs.presence_logits, outputs.semantic_logits]
    sum(part.square().sum() for part in parts).backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name

    save_segmenter(student, tmp_path)
    plain, info = Sam3Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    student.eval(), plain.eval()
    loaded = load_segmenter(tmp_path)
    loaded.net = plain
    with torch.no_grad():
        before, after = segment(student, batch), segment(loaded, batch)
    assert torch.equal(before.mask_logits, after.mask_logits)
    assert torch.equal(before.boxes, after.boxes)


def test_an_empty_spec_is_a_copy_of_the_teacher(tiny_teacher, make_batch):
    student = build_student(StudentSpec(), tiny_teacher, seed=1).eval()
    with torch.no_grad():
        ours, theirs = segment(student, make_batch()), segment(tiny_teacher, make_batch())
    assert torch.equal(ours.mask_logits, theirs.mask_logits)
    assert torch.equal(ours.query_logits, theirs.query_logits)
    assert torch.equal(ours.features["encoder"], theirs.features["encoder"])


def test_frozen_is_exactly_what_no_output_depends_on(tiny_teacher, make_batch):
    for segmenter in (tiny_teacher, build_student(StudentSpec(), tiny_teacher, seed=1)):
        segmenter.requires_grad_(True)
        outputs = segment(segmenter, make_batch(), auxiliary=True)
        layer = outputs.auxiliary[0]
        parts = [outputs.mask_logits, outputs.query_logits, outputs.boxes, outputs.presence_logits]
        parts += [outputs.semantic_logits, layer.boxes, layer.query_logits, layer.presence_logits]
        sum(part.sum() for part in parts).backward()
        idle = {name for name, parameter in segmenter.net.named_parameters() if parameter.grad is None}
        assert set(freeze_unused(segmenter.net)) == idle
        assert {name for name, parameter in segmenter.net.named_parameters() if not parameter.requires_grad} == idle


def test_the_same_seed_builds_the_same_student_and_leaves_the_global_one_alone(tiny_teacher):
    spec = StudentSpec(init="random")
    before = torch.random.get_rng_state()
    one, two, other = (build_student(spec, tiny_teacher, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    key = "net.text_projection.weight"
    assert torch.equal(one.state_dict()[key], two.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])


def test_box_prompts_are_refused_rather_than_answered_by_noise(tiny_teacher, make_batch):
    student = build_student(StudentSpec(), tiny_teacher, seed=1)
    with pytest.raises(RuntimeError, match="shape"):
        student.net(
            pixel_values=torch.zeros(1, 3, 112, 112),
            input_ids=torch.tensor([[768, 769]]),
            input_boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]),
        )


def test_a_narrow_student_projects_into_the_teachers_widths(tiny_teacher, make_batch):
    student = build_student(StudentSpec(init="copy", detr_width=16), tiny_teacher, seed=1)
    outputs = segment(Pupil(student, tiny_teacher.feature_widths), make_batch())
    assert outputs.features["vision"].shape == (2, 32, 8, 8)
    assert outputs.features["encoder"].shape == (4, 32, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_width": 50}, "student.vision_width=50 is not a multiple of the teacher's 16 channels per head; "),
        ({"vision_width": 50}, "use 48 or 64."),
        ({"vision_width": 50, "vision_heads": 1}, "student.vision_width=50 .*student.vision_heads=1; use 48 or 52."),
        ({"vision_heads": 3}, "student.vision_width=32 .*student.vision_heads=3; use 24 or 36."),
        ({"vision_width": 8}, "; use 16.$"),
        ({"detr_width": 40}, "student.detr_width=40 .*use 32 or 48."),
        ({"text_width": 20}, "student.text_width=20 .*use 16 or 32."),
        ({"image_size": 100}, "student.image_size=100 is not a multiple of the patch size 14; use 98 or 112."),
    ],
)
def test_an_impossible_shape_names_the_setting_and_the_nearest_possible(settings, message, tiny_teacher):
    with pytest.raises(ConfigError, match=message):
        student_config(StudentSpec(**settings), tiny_teacher.net.config)


@pytest.mark.parametrize(
    ("side", "window", "learned"),
    [(1008, 24, 24), (672, 24, 24), (504, 18, 18), (336, 24, 24), (252, 18, 18), (518, 19, 19)],
)
def test_windows_fit_the_grid_of_another_resolution(side, window, learned):
    vision = student_config(StudentSpec(image_size=side), Sam3Config()).vision_config
    assert vision.backbone_config.window_size == window
    assert vision.backbone_config.pretrain_image_size == learned * 14
    assert vision.backbone_feature_sizes == [[4 * side // 14] * 2, [2 * side // 14] * 2, [side // 14] * 2]


def test_the_teachers_config_is_left_alone():
    config = Sam3Config()
    before = config.to_dict()
    student_config(StudentSpec(vision_depth=4, detr_width=128, text_width=512, image_size=504), config)
    assert config.to_dict() == before


def test_sam3_has_840_million_parameters():
    size = model_size(Sam3Config())
    assert size.params_millions == pytest.approx(840.38, abs=0.01)
    assert size.megabytes["fp32"] == pytest.approx(4 * 840.376, abs=0.01)
    assert size.megabytes["fp16"] == pytest.approx(1680.75, abs=0.01)


@pytest.mark.parametrize(
    ("spec", "measured"),
    [
        (StudentSpec(vision_width=896, vision_depth=28, vision_heads=14), 692.2),
        (StudentSpec(vision_width=768, vision_depth=24, encoder_layers=4, decoder_layers=4), 573.8),
        (StudentSpec(vision_width=512, vision_depth=16, encoder_layers=4, decoder_layers=4), 439.7),
    ],
    ids=["medium", "lite", "small"],
)
def test_presets_have_the_measured_sizes_less_what_text_prompts_never_use(spec, measured):
    geometry_encoder = 8.08  # its replacement has 344 parameters
    third_upsampling_stage = 9 * 256 * 256 / 1e6 + 3 * 256 / 1e6  # convolution, its bias, GroupNorm
    text_projection = 1024 * 511 / 1e6  # of 512 outputs one is left
    size = model_size(student_config(spec, Sam3Config()))
    expected = measured - geometry_encoder - third_upsampling_stage - text_projection
    assert size.params_millions == pytest.approx(expected, abs=0.1)


def test_quantised_sizes_count_scales_and_leave_vectors_in_fp16(tiny_teacher):
    size = model_size(tiny_teacher.net.config)
    linear, kernels, vectors, channels, groups = 0, 0, 0, 0, 0
    for name, value in tiny_teacher.net.state_dict().items():
        if value.dim() == 1 or name.endswith("position_embeddings"):
            vectors += value.numel()
            continue
        channels += len(value)
        if value.dim() == 2:
            linear += value.numel()
            groups += len(value) * max(1, (value.shape[1] + 31) // 32)
        else:
            kernels += value.numel()
    kernel_channels = sum(len(v) for k, v in tiny_teacher.net.state_dict().items() if v.dim() == 4)
    assert size.megabytes["int8"] * 1e6 == linear + kernels + 2 * vectors + 2 * channels
    assert size.megabytes["int4"] * 1e6 == pytest.approx(
        linear / 2 + 2 * groups + kernels + 2 * kernel_channels + 2 * vectors
    )


def test_a_config_describes_its_own_size(tiny_teacher):
    student = build_student(StudentSpec(init="copy", vision_depth=1), tiny_teacher, seed=0)
    count = sum(parameter.numel() for parameter in student.parameters())
    assert model_size(student.net.config).params_millions == pytest.approx(count / 1e6)
    assert_close(torch.tensor(count / 1e6), torch.tensor(model_size(student.net.config).megabytes["fp32"] / 4))
