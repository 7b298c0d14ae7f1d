"""Students with a timm backbone or another text tower: they build, learn, and are the same after loading."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel, Sam3Config, Sam3Model

from sam3dist.answers import decoded, imitable
from sam3dist.config.distill import StudentSpec
from sam3dist.errors import CheckpointError, ConfigError
from sam3dist.imitation import feature_loss
from sam3dist.models.checkpoint import load_segmenter, read_config, save_segmenter
from sam3dist.models.modeling_sam3_student import Sam3StudentModel, TimmVisionConfig, TimmVisionEncoder
from sam3dist.models.segmenter import Pupil, freeze_unused, segment
from sam3dist.models.size import model_size
from sam3dist.models.student import build_student, student_config
from sam3dist.models.teacher import in_precision
from sam3dist.teaching.codec import decode_answer, decode_maps, encode_answers, encode_maps, stack_answers

TINY = "mobilenetv4_conv_small_050"
BACKBONES = ("repvit_m0_9", "tiny_vit_5m_224", "efficientvit_b0", "mobilenetv4_conv_medium", "fastvit_t8")
LITE = {"text_width": 64, "text_depth": 3}
SPECS = {
    **{name: {"backbone": name, "image_size": 64} for name in BACKBONES},
    "SAM3's neck": {"backbone": TINY, "neck": "sam3"},
    "both sides": {"backbone": TINY, "text_tower": "lite", **LITE},
    "convolutions on text": {"text_tower": "repmixer", **LITE},
    "narrow DETR": {"backbone": TINY, "detr_width": 16, "image_size": 96, "encoder_layers": 1},
}


def student_of(teacher, **spec):
    return build_student(StudentSpec(init="copy", **spec), teacher, seed=1)


def parts(outputs):
    return [outputs.mask_logits, outputs.query_logits, outputs.boxes, outputs.presence_logits, outputs.semantic_logits]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_every_family_learns_and_answers_the_same_after_loading(spec, tiny_teacher, make_batch, tmp_path):
    student = student_of(tiny_teacher, **spec)
    batch = make_batch()
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-3)
    for _ in range(2):  # some residual branches start at zero, and reach what is inside from the second step on
        optimizer.zero_grad()
        sum(part.square().mean() for part in parts(segment(student, batch, auxiliary=True))).backward()
        optimizer.step()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.any(), name

    save_segmenter(student, tmp_path)
    loaded = load_segmenter(tmp_path)
    assert type(loaded.net) is Sam3StudentModel
    student.eval()
    with torch.no_grad():
        before, after = segment(student, batch), segment(loaded, batch)
    for ours, theirs in zip(parts(before), parts(after), strict=True):
        assert torch.equal(ours, theirs)
    count = sum(parameter.numel() for parameter in student.parameters())
    assert model_size(read_config(str(tmp_path))).params_millions == count / 1e6


@pytest.mark.parametrize("neck", ["pyramid", "sam3"])
def test_levels_are_at_strides_4_8_and_16_and_masks_at_4(neck, tiny_teacher, make_batch):
    student = student_of(tiny_teacher, backbone=TINY, neck=neck, image_size=96).eval()
    levels = student.net.vision_encoder(torch.zeros(1, 3, 96, 96)).fpn_hidden_states
    assert [tuple(level.shape) for level in levels[:3]] == [(1, 32, 24, 24), (1, 32, 12, 12), (1, 32, 6, 6)]
    outputs = segment(student, make_batch())
    assert student.grid == 6
    assert outputs.mask_logits.shape[-2:] == outputs.semantic_logits.shape[-2:] == (24, 24)
    assert outputs.features["vision"].shape == outputs.features["encoder"][:2].shape == (2, 32, 6, 6)


def test_a_single_image_can_be_trained_on(tiny_teacher, make_batch):
    student = student_of(tiny_teacher, backbone=TINY, image_size=64, text_tower="repmixer", **LITE)
    outputs = segment(student, make_batch(images=1, prompts_per_image=1))
    outputs.mask_logits.sum().backward()
    assert torch.isfinite(outputs.mask_logits).all()


def test_features_on_another_grid_are_compared_on_the_teachers(tiny_teacher, make_batch):
    """Constant maps stay constant however they are resized, which gives the loss by hand."""
    student = student_of(tiny_teacher, backbone=TINY, image_size=96, detr_width=16)
    batch = make_batch()
    found = segment(Pupil(student, tiny_teacher.feature_widths), batch).features
    with torch.no_grad():
        taught = segment(tiny_teacher, batch).features
    assert found["vision"].shape == (2, 32, 6, 6)
    assert taught["vision"].shape == (2, 32, 8, 8)
    feature_loss(found, taught, ("vision", "encoder"))[0].backward()
    assert student.net.vision_encoder.backbone.conv_stem.weight.grad.any()

    names = ("vision", "encoder")
    said = imitable(segment(tiny_teacher, batch), names)
    coded = {name: [decode_maps(data) for data in encode_maps(said.features[name])] for name in names}
    stored = decoded(stack_answers([decode_answer(data) for data in encode_answers(said)], coded), names)
    assert_close(feature_loss(found, stored.features, names), feature_loss(found, taught, names), rtol=0.05, atol=0)

    flat = {"vision": torch.full((2, 32, 6, 6), 3.0)}
    _, shares = feature_loss(flat, taught, ("vision",))
    variance = (taught["vision"] - taught["vision"].mean((0, 2, 3), keepdim=True)).square().mean()
    assert_close(shares["feature/vision"], (taught["vision"] - 3).square().mean() / variance)


def test_everything_behind_the_neck_comes_from_the_teacher(tiny_teacher):
    student = student_of(tiny_teacher, backbone=TINY, neck="sam3")
    theirs = dict(tiny_teacher.net.named_parameters())
    same = [name for name, value in student.net.named_parameters() if torch.equal(value, theirs.get(name, value[:0]))]
    assert {name.split(".")[0] for name in same} >= {"detr_encoder", "detr_decoder", "mask_decoder", "text_encoder"}
    assert "vision_encoder.neck.fpn_layers.0.scale_layers.0.weight" in same
    ours = [name for name, _ in student.net.named_parameters() if name.startswith(("detr", "mask", "dot"))]
    assert set(ours) <= set(same)


def test_a_mobile_student_can_be_the_teacher_of_the_next(tiny_teacher, make_batch):
    first = student_of(tiny_teacher, backbone=TINY, text_tower="lite", **LITE)
    segment(first, make_batch())  # its BatchNorms count
    copy = student_of(first.eval()).eval()
    assert copy.net.config.to_dict() == first.net.config.to_dict()
    with torch.no_grad():
        for ours, theirs in zip(parts(segment(copy, make_batch())), parts(segment(first, make_batch())), strict=True):
            assert torch.equal(ours, theirs)
    vit = student_of(tiny_teacher, vision_width=16)
    assert type(vit.net) is Sam3Model


@pytest.mark.parametrize("backbone", [TINY, "tiny_vit_5m_224"])
def test_a_mobile_teacher_answers_in_bf16(backbone, tiny_teacher, make_batch):
    teacher = student_of(tiny_teacher, backbone=backbone, image_size=64, text_tower="repmixer", **LITE).eval()
    with torch.no_grad():
        exact = segment(teacher, make_batch())
        rounded = segment(in_precision(teacher, "bf16"), make_batch())
    assert_close(rounded.boxes, exact.boxes, rtol=0, atol=0.02)
    assert not torch.equal(rounded.mask_logits, exact.mask_logits)


def test_only_the_projection_of_the_text_tower_is_frozen(tiny_teacher):
    student = student_of(tiny_teacher, backbone=TINY, text_tower="lite", **LITE)
    assert freeze_unused(student.net) == ["text_encoder.projection.weight"]
    with pytest.raises(ValueError, match="not taught boxes"):
        student.net(
            pixel_values=torch.zeros(1, 3, 128, 128),
            input_ids=torch.tensor([[768, 769]]),
            input_boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "repvit_m1_2"}, "student.backbone=repvit_m1_2: timm has no such network; did you mean repvit_m"),
        ({"backbone": "vit_tiny_patch16_224"}, "maps at strides 16, 16, 16, but 4, 8, 16 and 32 are needed"),
        ({"backbone": "efficientformerv2_s0", "image_size": 256}, "does not take student.image_size=256"),
        ({"backbone": TINY, "image_size": 100}, "student.image_size=100 is not a multiple of 32.*; use 96 or 128."),
        ({"backbone": TINY, "vision_width": 64}, f"student.vision_width=64 contradicts student.backbone={TINY}"),
        ({"neck": "sam3"}, "student.neck=sam3 has no effect without student.backbone"),
        ({"backbone_weights": "pretrained"}, "student.backbone_weights=pretrained has no effect without"),
        ({"text_tower": "lite", "text_width": 100}, "student.text_width=100 is not a multiple of 64.*; use 64 or 128."),
        ({"text_tower": "bert"}, "student.text_tower=bert is unknown; use clip, lite, repmixer, or .*MobileCLIP2-S0"),
        ({"text_tower": "MobileCLIP2-S0", "text_depth": 4}, "student.text_depth=4 contradicts .*MobileCLIP2-S0"),
        ({"text_tower": "lite", "text_weights": "x.pt"}, "student.text_weights=x.pt is for a tower of open_clip"),
    ],
)
def test_what_cannot_be_names_the_setting_and_the_way_out(settings, message, tiny_teacher):
    with pytest.raises(ConfigError, match=message):
        student_config(StudentSpec(**settings), tiny_teacher.net.config)


def test_without_an_image_size_a_backbone_takes_the_multiple_of_32_nearest_to_the_teachers():
    assert student_config(StudentSpec(backbone=TINY), Sam3Config()).image_size == 1024


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_backbone_starts_from_a_file_of_timms_and_sees_pixels_as_it_did_there(kind, tiny_teacher, tmp_path):
    torch.manual_seed(5)
    whole = timm.create_model(TINY).eval()
    file = tmp_path / f"weights.{kind}"
    save_file(whole.state_dict(), file) if kind == "safetensors" else torch.save(whole.state_dict(), file)
    student = student_of(tiny_teacher, backbone=TINY, backbone_weights=str(file), image_size=64).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    cfg = whole.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = whole.forward_intermediates((images / 255 - mean) / std, intermediates_only=True)
        found = student.net.vision_encoder(student.normalised(images)).last_hidden_state
    assert_close(found, expected[-1], rtol=1e-4, atol=1e-4)


def test_wrong_weights_of_a_backbone_are_one_line(tiny_teacher, tmp_path):
    spec = {"backbone": TINY, "image_size": 64}
    with pytest.raises(CheckpointError, match=r"nowhere.pt: no such file; give one, or `pretrained`"):
        student_of(tiny_teacher, **spec, backbone_weights="nowhere.pt")
    other = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    with pytest.raises(CheckpointError, match=f"other.pth: no weights for {TINY}"):
        student_of(tiny_teacher, **spec, backbone_weights=str(other))
    dangerous = tmp_path / "pickle.pth"
    torch.save(Path("anything"), dangerous)
    with pytest.raises(CheckpointError, match=r"pickle.pth: no weights for .*more than tensors"):
        student_of(tiny_teacher, **spec, backbone_weights=str(dangerous))


def test_without_a_network_pretrained_weights_are_one_line(tiny_teacher, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"backbone_weights=pretrained: no weights for repvit_m0_9") as one:
        student_of(tiny_teacher, backbone="repvit_m0_9", backbone_weights="pretrained", image_size=64)
    assert "\n" not in str(one.value)


ELSEWHERE = """
import sys
sys.modules["sam3dist"] = None
import torch
from transformers import AutoModel, Sam3Processor
from PIL import Image

for directory in sys.argv[1:]:
    net = AutoModel.from_pretrained(directory, trust_remote_code=True).eval()
    processor = Sam3Processor.from_pretrained(directory)
    picture = Image.open(directory + "/picture.png")
    inputs = processor(images=picture, text="small yellow fish", return_tensors="pt")
    with torch.no_grad():
        found = net(**{key: inputs[key] for key in ("pixel_values", "input_ids", "attention_mask")})
    answers = [found.pred_masks, found.pred_logits, found.pred_boxes, found.presence_logits]
    torch.save(answers, directory + "/answers.pt")
"""


@pytest.mark.slow
def test_a_process_with_transformers_alone_answers_the_same(tiny_teacher, make_batch, tmp_path):
    specs = {"vit": {"vision_depth": 1}, "timm": {"backbone": TINY, "text_tower": "repmixer", **LITE}}
    ours = {}
    for name, spec in specs.items():
        student = student_of(tiny_teacher, **spec).eval()
        save_segmenter(student, tmp_path / name)
        batch = make_batch(images=1, prompts_per_image=1, side=student.image_size)
        Image.fromarray(batch.images[0].permute(1, 2, 0).numpy()).save(tmp_path / name / "picture.png")
        with torch.no_grad():
            ours[name] = student(batch.images, batch.image_of_prompt, ("small yellow fish",))
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    done = subprocess.run(
        [sys.executable, "elsewhere.py", *specs],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, answer in ours.items():
        for key, theirs in zip(
            ("mask_logits", "query_logits", "boxes", "presence_logits"),
            torch.load(tmp_path / name / "answers.pt"),
            strict=True,
        ):
            assert_close(theirs.view_as(answer[key]), answer[key], rtol=1e-4, atol=1e-4)


def test_a_configuration_cannot_make_timm_fetch_a_backbone():
    with pytest.raises(ValueError, match="timm has no such network"):
        TimmVisionEncoder(TimmVisionConfig(backbone="hf-hub:someone/something"))


def test_loading_never_runs_code_that_lies_in_the_directory(tiny_teacher, tmp_path):
    save_segmenter(student_of(tiny_teacher, backbone=TINY, image_size=64), tmp_path)
    code = tmp_path / "modeling_sam3_student.py"
    assert code.is_file()
    code.write_text("raise SystemExit('run')")
    load_segmenter(tmp_path)
    with pytest.raises(SystemExit):
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
