"""What one worker of an evaluation gives, without a cluster, and what two give as a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.evaluate import evaluate_worker, work
from sam3dist.cli import main
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from tests.sam3dist.promised import assert_promised


def test_rows_set_aside_are_counted_by_reason(
    tiny_run: DistillConfig, tiny_teacher_dir: Path, scenes: tuple[Path, Path]
):
    given = {"config": tiny_run, "checkpoint": str(tiny_teacher_dir), "shards": str(scenes[1])}
    assert evaluate_worker(given)["rejected"] == {}
    config = with_overrides(tiny_run, {"data.max_pixels": 9, "data.max_rejected_share": 1})
    assert evaluate_worker({**given, "config": config})["rejected"] == {"too many pixels": 6}


@pytest.mark.slow
def test_a_job_on_two_workers_measures_what_the_verb_does(
    joined: object, tiny_teacher_dir: Path, scenes: tuple[Path, Path], tmp_path: Path
):
    words = [str(tiny_teacher_dir), str(scenes[1]), "eval.threshold=0.2"]
    on_two = ["strategy.num_workers=2", "strategy.cpus_per_worker=0.9", f"run.dir={tmp_path / 'job'}"]
    assert work([*words, *on_two]) == tmp_path / "job"
    assert main(["eval", *words, f"run.dir={tmp_path / 'verb'}"]) == 0
    job, verb = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("job", "verb"))
    assert (job["verb"], job["status"], job["num_pairs"]) == ("eval", "ok", verb["num_pairs"])
    assert_promised(job)
    assert job["metrics"] == pytest.approx(verb["metrics"], abs=1e-6, nan_ok=True)
    assert job["params_millions"] == verb["params_millions"]
