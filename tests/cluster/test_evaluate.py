"""What one worker of an evaluation gives, without a cluster; test_training.py has two on one."""

from __future__ import annotations

from pathlib import Path

from cluster.evaluate import evaluate_worker
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides


def test_rows_set_aside_are_counted_by_reason(
    tiny_run: DistillConfig, tiny_teacher_dir: Path, scenes: tuple[Path, Path]
):
    given = {"config": tiny_run, "checkpoint": str(tiny_teacher_dir), "shards": str(scenes[1])}
    assert evaluate_worker(given)["rejected"] == {}
    config = with_overrides(tiny_run, {"data.max_pixels": 9, "data.max_rejected_share": 1})
    assert evaluate_worker({**given, "config": config})["rejected"] == {"too many pixels": 6}
