"""Trains the embedded teacher: a small network of the real SAM3 architecture that knows the generated scenes.

    python -m sam3dist.scene_teacher OUT_DIR --steps 7000

Every step sees scenes never seen before, so there is nothing to overfit; the figures in the card are of a fixed set
of other scenes. Run it again on the same OUT_DIR to go on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from sam3dist.config.distill import DistillationConfig
from sam3dist.data.samples.live import SceneBatches, scene_batch
from sam3dist.data.samples.scenes import SPLITS
from sam3dist.evaluate import evaluate
from sam3dist.losses import distillation_loss
from sam3dist.models.checkpoint import save_segmenter
from sam3dist.models.reduced import reduced_sam3
from sam3dist.models.segmenter import segment

LABELS_ONLY = DistillationConfig(beta=0, gamma=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--images", type=int, default=8, help="scenes a step")
    parser.add_argument("--prompts", type=int, default=5, help="phrases a scene")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--evaluation-scenes", type=int, default=64)
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    train(options)


def train(options: argparse.Namespace) -> None:
    segmenter = reduced_sam3(options.seed)
    parameters = [p for p in segmenter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.02)
    warmup = 200

    def rate(step: int) -> float:
        done = min(1.0, max(0, step - warmup) / max(1, options.steps - warmup))
        return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    resume, first_step = options.out_dir / "training.pt", 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        segmenter.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first_step = state["step"]
    batches = DataLoader(SceneBatches(options.images, options.prompts, first_step), batch_size=None, num_workers=1)
    held_out = [
        scene_batch([(SPLITS["teacher-val"], start + k) for k in range(8)], None)
        for start in range(0, options.evaluation_scenes, 8)
    ]
    started = time.monotonic()
    sums: dict[str, float] = {}
    for step, batch in zip(range(first_step + 1, options.steps + 1), batches, strict=False):
        segmenter.train()
        loss = distillation_loss(segment(segmenter, batch, auxiliary=True), batch, None, LABELS_ONLY)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        assert torch.isfinite(norm), f"step {step}: gradient norm {norm}"
        optimizer.step()
        schedule.step()
        for name, value in {"total": loss.total.detach(), "norm": norm, **loss.parts}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        if step % 50 == 0:
            seconds = (time.monotonic() - started) / (step - first_step)
            means = " ".join(f"{name.removeprefix('task/')} {value / 50:.3f}" for name, value in sums.items())
            print(f"step {step} {seconds:.2f} s/step {means}", flush=True)
            sums = {}
        if step % options.evaluate_every == 0 or step == options.steps:
            metrics = evaluate(segmenter, iter(held_out), 0.5, device="cpu")
            print(f"step {step} unseen scenes {json.dumps(metrics)}", flush=True)
            save_segmenter(segmenter, options.out_dir / "teacher")
            with (options.out_dir / "history.jsonl").open("a") as history:
                history.write(json.dumps({"step": step, **metrics}) + "\n")
            state = {
                "model": segmenter.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step,
            }
            torch.save(state, resume.with_suffix(".tmp"))
            resume.with_suffix(".tmp").replace(resume)


if __name__ == "__main__":
    main()
