"""The strategies that share out the student, as Ray Train runs them; DDP is in test_training.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.trainer import run_training
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.engine.checkpoint import read_state
from sam3dist.engine.loggers import read_history
from sam3dist.models.checkpoint import load_segmenter


def weights(checkpoint: str) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(load_segmenter(checkpoint).parameters())


@pytest.mark.long
@pytest.mark.parametrize(
    "strategy",
    [{"strategy.kind": "fsdp"}, {"strategy.kind": "deepspeed", "strategy.zero_stage": 2}],
    ids=["fsdp", "deepspeed"],
)
def test_two_workers_that_share_a_student_save_it_and_go_on(
    joined: object, tiny_run: DistillConfig, tmp_path: Path, strategy: dict[str, Any]
):
    """Each worker reports its own files; Ray Train makes one checkpoint of them, from which all resume."""
    settings = {**strategy, "strategy.num_workers": 2, "strategy.cpus_per_worker": 0.9, "eval.max_images": 2}
    config = with_overrides(tiny_run, {**settings, "optim.steps": 2})
    first = run_training(config, tmp_path)
    assert (first["step"], first["complete"]) == (2, True)

    second = run_training(with_overrides(config, {"optim.steps": 4}), tmp_path)
    assert (second["step"], second["complete"]) == (4, True)
    assert second["before"] == pytest.approx(first["before"], nan_ok=True)
    state = read_state(Path(second["checkpoint"]))
    assert state.strategy == strategy["strategy.kind"]
    assert (state.step, state.batches, state.images, state.world_size) == (4, 4, 16, 2)
    steps = [line["step"] for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4]
    before, after = weights(first["checkpoint"]), weights(second["checkpoint"])
    assert after.numel() == pytest.approx(1e6 * second["params_millions"])
    assert after.isfinite().all()
    assert not torch.equal(before, after)
