"""What a worker makes of its troubles, without a cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.trainer import INHERITED
from cluster.worker import history_of, make_student, memory_explained
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.data.samples.write import scene_shards
from sam3dist.data.segments import Segment
from sam3dist.engine.checkpoint import TrainingState
from sam3dist.errors import CheckpointError, ResourceError
from sam3dist.models.student import build_student
from sam3dist.models.teacher import load_teacher


def test_a_full_gpu_is_one_line_with_the_settings_to_lower():
    said = "CUDA out of memory. Tried to allocate 2.12 GiB. GPU 0 has a total capacity of 15.77 GiB"
    with (
        pytest.raises(
            ResourceError, match=r"^CUDA out of memory; set optim\.gradient_checkpointing=true, lower data\.im"
        ),
        memory_explained(),
    ):
        raise torch.OutOfMemoryError(said)


def test_a_checkpoint_that_does_not_say_what_it_has_seen_is_refused(tmp_path: Path):
    segments = (Segment("abc", 2, 1, 2, 8, 5), Segment("abc", 2, 1, 1, 8, 6))
    state = TrainingState(0, "ddp", "fp32", 1, "", step=11, batches=11, segments=segments)
    assert history_of(state, tmp_path) == segments
    with pytest.raises(CheckpointError, match="does not say which rows its 11 batches were made of"):
        history_of(replace(state, segments=()), tmp_path)


def test_a_fresh_student_looks_at_the_training_images_and_a_resumed_one_at_none(tmp_path: Path):
    teacher = load_teacher("embedded")
    changes = {"data.train": str(scene_shards(tmp_path, 6, seed=0)), "student.init": "pca"}
    config = with_overrides(load_preset("smoke"), {**changes, "student.calibration_images": 4})
    fresh = make_student(config, teacher, tmp_path, None).net.state_dict()
    blank = with_overrides(config, {"data.train": "nowhere"})
    resumed = make_student(blank, teacher, tmp_path, tmp_path).net.state_dict()
    random = build_student(with_overrides(config, {"student.init": "random"}).student, teacher, 0).net.state_dict()
    name = "vision_encoder.backbone.layers.0.mlp.fc1.weight"
    assert torch.equal(resumed[name], random[name])
    assert not torch.equal(fresh[name], random[name])
    told = json.loads((tmp_path / INHERITED).read_text())
    assert told["init"] == "pca"
    assert told["share"] > 0.9
    assert all(part.startswith(("geometry_encoder", "text_encoder.text_projection")) for part in told["fresh"])
