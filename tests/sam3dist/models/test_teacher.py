from __future__ import annotations

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import Sam3Config

from sam3dist.config.distill import StudentSpec
from sam3dist.errors import CheckpointError, ConfigError
from sam3dist.models import teacher as teacher_module
from sam3dist.models.checkpoint import save_segmenter
from sam3dist.models.segmenter import segment
from sam3dist.models.size import model_size
from sam3dist.models.student import build_student
from sam3dist.models.teacher import in_precision, load_teacher, teacher_config


def test_a_directory_gives_a_frozen_teacher_in_eval_mode(tiny_teacher_dir, tiny_teacher, make_batch):
    teacher = load_teacher(str(tiny_teacher_dir), geometry_token=False)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(segment(teacher, make_batch()).boxes, segment(tiny_teacher, make_batch()).boxes.detach())


def test_a_run_directory_stands_for_the_student_it_trained(tmp_path, tiny_teacher_dir, make_batch):
    (tmp_path / "report.json").write_text(json.dumps({"checkpoint": str(tiny_teacher_dir)}))
    found, named = load_teacher(str(tmp_path)), load_teacher(tiny_teacher_dir)
    assert torch.equal(segment(found, make_batch()).boxes, segment(named, make_batch()).boxes)
    assert teacher_config(str(tmp_path)).to_dict() == teacher_config(tiny_teacher_dir).to_dict()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_teacher_in_half_precision_answers_nearly_the_same(tiny_teacher_dir, make_batch, precision, dtype):
    exact, rough = load_teacher(tiny_teacher_dir), load_teacher(tiny_teacher_dir, precision=precision)
    assert rough.net.vision_encoder.neck.fpn_layers[0].proj1.weight.dtype == dtype
    assert rough.net.detr_decoder.query_embed.weight.dtype == torch.float32
    ours, theirs = segment(rough, make_batch()), segment(exact, make_batch())
    assert_close(ours.boxes, theirs.boxes, rtol=0, atol=0.02)
    assert_close(ours.presence_logits, theirs.presence_logits, rtol=0, atol=0.05)


def shape_of(config):
    """All of a configuration but where it came from and in which precision weights are held."""
    if not isinstance(config, dict):
        return config
    return {key: shape_of(value) for key, value in config.items() if key not in ("dtype", "_name_or_path")}


def test_a_configuration_is_read_without_the_weights(tiny_teacher_dir, tmp_path):
    expected = load_teacher(tiny_teacher_dir).net.config
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text((tiny_teacher_dir / "config.json").read_text())
    assert shape_of(teacher_config(tmp_path).to_dict()) == shape_of(expected.to_dict())
    assert model_size(teacher_config(tmp_path)) == model_size(expected)
    (tmp_path / "sam3.pt").touch()  # its shape is known
    assert teacher_config(tmp_path / "sam3.pt").to_dict() == Sam3Config().to_dict()
    with pytest.raises(CheckpointError, match="does not exist"):
        teacher_config(str(tmp_path / "nowhere" / "else"))


def test_the_configuration_of_the_video_model_is_that_of_its_detector(tiny_teacher_dir, tmp_path):
    detector = json.loads((tiny_teacher_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": detector}))
    assert teacher_config(tmp_path).to_dict() == teacher_config(tiny_teacher_dir).to_dict()


def test_half_precision_leaves_rotary_positions_exact(tiny_teacher_dir):
    exact, rough = load_teacher(tiny_teacher_dir), load_teacher(tiny_teacher_dir, precision="bf16")
    for (name, ours), (_, theirs) in zip(rough.named_buffers(), exact.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_student_built_before_has_the_exact_weights(tiny_teacher_dir):
    teacher = load_teacher(tiny_teacher_dir, precision="fp32")
    exact = {name: value.clone() for name, value in teacher.named_parameters()}
    student = build_student(StudentSpec(), teacher, seed=0)
    rough, loaded = in_precision(teacher, "bf16"), load_teacher(tiny_teacher_dir, precision="bf16")
    name = "net.vision_encoder.backbone.layers.0.mlp.fc1.weight"
    assert torch.equal(student.get_parameter(name), exact[name])
    assert not torch.equal(rough.get_parameter(name).float(), exact[name])
    for ours, theirs in zip(rough.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert rough.autocast == loaded.autocast == torch.bfloat16


def test_auto_is_fp32_on_a_cpu(tiny_teacher_dir):
    teacher = load_teacher(tiny_teacher_dir, "cpu", "auto")
    assert teacher.autocast is None
    assert all(parameter.dtype == torch.float32 for parameter in teacher.parameters())


def test_an_unknown_precision_is_named(tiny_teacher_dir):
    with pytest.raises(ConfigError, match=r"teacher\.precision=fp8 is unknown; use auto, fp32, bf16 or fp16"):
        load_teacher(tiny_teacher_dir, precision="fp8")


def test_the_detector_inside_the_published_video_model_is_found(tiny_teacher_dir, tiny_teacher, make_batch, tmp_path):
    """facebook/sam3 is a video model whose detector is a Sam3Model; the tracker's weights are left out."""
    save_segmenter(tiny_teacher, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    weights = {f"detector_model.{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    weights |= {"tracker_model.mask_decoder.weight": torch.ones(2), "tracker_neck.weight": torch.ones(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    teacher = load_teacher(tmp_path, geometry_token=False)
    assert torch.equal(segment(teacher, make_batch()).boxes, segment(tiny_teacher, make_batch()).boxes.detach())
    assert load_teacher(tmp_path).geometry_token


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "sam3"])
def test_nothing_at_a_path_is_one_line_with_the_ways_out(source):
    with pytest.raises(CheckpointError, match=r"does not exist; give a directory, Meta's sam3\.pt, or an id like"):
        load_teacher(source)


def test_a_file_that_is_no_checkpoint_of_metas_is_refused(tiny_teacher_dir):
    with pytest.raises(CheckpointError, match="give the directory that holds it"):
        load_teacher(tiny_teacher_dir / "model.safetensors")


def test_an_unreachable_hub_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="someone/sam3: there is no such directory, and as a") as caught:
        load_teacher("someone/sam3")
    assert "\n" not in str(caught.value)


def test_metas_file_gets_the_full_tokenizer_and_is_checked(tmp_path):
    torch.save({"detector.something": torch.ones(1)}, tmp_path / "sam3.pt")
    with pytest.raises(CheckpointError, match="weights of another architecture; missing: "):
        load_teacher(tmp_path / "sam3.pt")


def test_embedded_is_the_directory_in_the_package(tiny_teacher, make_batch, tmp_path, monkeypatch):
    assert teacher_module.EMBEDDED.parts[-4:] == ("sam3dist", "data", "samples", "teacher")
    monkeypatch.setattr(teacher_module, "EMBEDDED", tmp_path)
    save_segmenter(tiny_teacher, tmp_path)
    teacher = load_teacher("embedded", geometry_token=False)
    assert torch.equal(segment(teacher, make_batch()).boxes, segment(tiny_teacher, make_batch()).boxes)
