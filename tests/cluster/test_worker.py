"""What a worker makes of its troubles, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cluster.trainer import INHERITED
from cluster.worker import batches_seen, make_student, memory_explained
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import load_preset, with_overrides
from sam3dist.data.samples.write import scene_shards
from sam3dist.engine.checkpoint import TrainingState
from sam3dist.errors import ResourceError
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


@pytest.mark.parametrize(("workers", "left_out"), [(2, 11), (1, 20), (4, 5)])
def test_a_resumed_run_leaves_out_the_images_it_has_seen(tiny_run: DistillConfig, workers: int, left_out: int):
    # 2 workers, 11 batches of 2 images each, of which 2 were the short last ones of an epoch: 40 images.
    state = TrainingState(
        step=11, batches=11, images=40, epoch=2.5, seed=0, strategy="ddp", precision="fp32", world_size=2,
        architecture="", before={},
    )  # fmt: skip
    config = with_overrides(tiny_run, {"strategy.num_workers": workers, "data.images_per_batch": 2})
    assert batches_seen(state, config) == left_out


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
