"""Teachers in processes of their own: the same student, and one that dies is asked again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import ray
from ray.util.state import list_actors

from cluster.teachers import answered, teachers
from cluster.trainer import run_training
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.data.batches import evaluation_batches
from sam3dist.data.shards import open_shards
from sam3dist.models.teacher import load_teacher

pytestmark = pytest.mark.long


def student_of(result: dict) -> bytes:
    return Path(result["checkpoint"], "student", "model.safetensors").read_bytes()


def test_a_teacher_elsewhere_teaches_the_same_student(joined: object, tiny_run: DistillConfig, tmp_path: Path):
    beside = run_training(with_overrides(tiny_run, {"student.init": "copy"}), tmp_path / "beside")
    elsewhere = {"student.init": "copy", "teacher.workers": 2}
    apart = run_training(with_overrides(tiny_run, elsewhere), tmp_path / "apart")
    assert apart["metrics"] == pytest.approx(beside["metrics"], nan_ok=True)
    assert student_of(apart) == student_of(beside)
    alive = [actor for actor in list_actors(filters=[("state", "=", "ALIVE")]) if actor.class_name == "_Teacher"]
    assert not alive


def test_a_teacher_that_is_killed_starts_again_and_answers(joined: object, tiny_run: DistillConfig):
    config = with_overrides(tiny_run, {"teacher.workers": 1})
    shards = open_shards(str(config.data.val))
    side = load_teacher(config.teacher.source).image_size
    asked = list(evaluation_batches(shards, config.data, side, images_per_batch=1))
    with teachers(config) as started:
        assert started is not None
        whole = [batch.answers for batch in answered(iter(asked), started, config, rank=0)]
        (actor,) = started.actors
        threading.Timer(0.05, ray.kill, (actor,), {"no_restart": False}).start()
        again = [batch.answers for batch in answered(iter(asked), started, config, rank=0)]
    for before, after in zip(whole, again, strict=True):
        assert (before.query_logits == after.query_logits).all()
        assert (before.features["vision"] == after.features["vision"]).all()
