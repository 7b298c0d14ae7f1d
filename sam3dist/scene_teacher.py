"""Trains the embedded teacher: a small network of the real SAM3 architecture that knows the generated scenes.

    python -m sam3dist.scene_teacher OUT_DIR

Five stages: the vision transformer learns what things look like (`scene_vision`), the DETR encoder learns to join
that to words, the DETR decoder to box what phrases name, then the whole network to segment it, with SAM3's task loss,
and last the mask decoder alone to follow outlines.
Every step sees scenes never seen before, so there is nothing to overfit; figures are of a fixed set of other scenes.
The same OUT_DIR again goes on after an interruption, at the first unfinished stage; the last one keeps its place, too.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sam3dist.config.distill import DistillationConfig, TaskWeights
from sam3dist.data.samples.live import SceneBatches, scene_batch
from sam3dist.data.samples.phrases import FORMS
from sam3dist.data.samples.scenes import SPLITS
from sam3dist.evaluate import evaluate
from sam3dist.losses import distillation_loss
from sam3dist.models.checkpoint import save_segmenter
from sam3dist.models.reduced import reduced_sam3
from sam3dist.models.segmenter import Segmenter, freeze_unused, segment
from sam3dist.scene_vision import COARSEST, coarsest_map, muon_and_adamw, pretrain_vision, update
from sam3dist.targets import make_targets
from sam3dist.terms import dice_loss
from sam3dist.types import LayerOutputs, PromptBatch, SegOutputs

CLASS_WEIGHT = 100.0
"""SAM3's 20 is for 200 queries, by which its class loss is divided; these are 16."""
BOXES_ONLY = DistillationConfig(
    beta=0,
    gamma=0,
    # SAM3's 5 and 2 suit a detector that has long learned to box; the presence head would have the decoder for itself.
    task=TaskWeights(classification=CLASS_WEIGHT, box_l1=20, box_giou=8, mask=0, dice=0, semantic=0, semantic_dice=0),
)
LABELS_ONLY = DistillationConfig(
    beta=0,
    gamma=0,
    # Masks come last and have the fewest steps, so they weigh two and three times what they do for SAM3.
    task=TaskWeights(classification=CLASS_WEIGHT, mask=400, dice=30),
)
HARDEST_FORMS = {form: 2.0 if "texture" in form else 1.0 for form in FORMS}
"""What the boxes are learned from: texture and place, rare in FORMS, are what the words tie to pixels last."""
WARMUP_STEPS = 100
FUSION_WEIGHT = 20.0
REPORT_EVERY = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--vision-steps", type=int, default=2000, help="of 20 scenes")
    parser.add_argument("--vision-learning-rate", type=float, default=2e-3)
    parser.add_argument("--word-steps", type=int, default=2000, help="of 128 phrases")
    parser.add_argument("--box-steps", type=int, default=1300, help="of 128 phrases")
    parser.add_argument("--steps", type=int, default=1500, help="of the whole network")
    parser.add_argument("--mask-steps", type=int, default=800, help="of the mask decoder")
    parser.add_argument("--images", type=int, default=8, help="scenes a step")
    parser.add_argument("--prompts", type=int, default=5, help="phrases a scene")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--last-learning-rate", type=float, default=6e-4, help="of the whole network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--evaluation-scenes", type=int, default=48)
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    segmenter = reduced_sam3(options.seed)
    for name, stage in STAGES.items():
        finished = options.out_dir / f"{name}.pt"
        if not finished.exists():
            stage(segmenter, options)
            torch.save(segmenter.state_dict(), finished)
        segmenter.load_state_dict(torch.load(finished, weights_only=True))
    held_out = [
        scene_batch([(SPLITS["teacher-val"], start + k) for k in range(8)], None)
        for start in range(0, options.evaluation_scenes, 8)
    ]
    train(segmenter, options, held_out)
    sharpen_masks(segmenter, options)
    keep(segmenter, options, held_out, "end")


def see_things(segmenter: Segmenter, options: argparse.Namespace) -> None:
    """The first stage."""
    pretrain_vision(segmenter, options.vision_steps, 20, options.vision_learning_rate)


def join_words(segmenter: Segmenter, options: argparse.Namespace) -> None:
    """The second stage: vision, text and DETR encoder alone, without the decoders that are most of a step's cost.

    In the time of one step of the whole network this sees three times as many phrases.
    """
    net = segmenter.net
    fusion_head = nn.Conv2d(segmenter.feature_widths["encoder"], 1, kernel_size=1)
    learners = [net.vision_encoder, net.text_encoder, net.text_projection, net.detr_encoder, fusion_head]
    optimizers = muon_and_adamw(learners)
    progress = Progress("words", options.word_steps)
    for step, batch in enumerate(_lessons(options.word_steps), start=1):
        encoded, _, _ = _encoded(segmenter, batch)
        loss = fusion_loss(fusion_head(segmenter.as_map(encoded.last_hidden_state)).squeeze(1), batch)
        loss.backward()
        update(optimizers, options.learning_rate * _ramps(step, options.word_steps))
        progress.add(step, {"fusion": loss.detach()})


def find_boxes(segmenter: Segmenter, options: argparse.Namespace) -> None:
    """The third stage: all but the mask decoder, half the cost of a step, learns class, presence and boxes."""
    fusion_head = nn.Conv2d(segmenter.feature_widths["encoder"], 1, kernel_size=1)
    optimizers = muon_and_adamw([segmenter, fusion_head])
    progress = Progress("boxes", options.box_steps)
    scenes = SceneBatches(16, 8, first_step=3 * options.word_steps, forms=HARDEST_FORMS)
    for step, batch in enumerate(_drawn(scenes, options.box_steps), start=1):
        encoded, text, mask = _encoded(segmenter, batch)
        _, found = segmenter.find(encoded, text, mask)
        loss = distillation_loss(_maskless(found, segmenter.grid), batch, None, BOXES_ONLY)
        fused = fusion_loss(fusion_head(segmenter.as_map(encoded.last_hidden_state)).squeeze(1), batch)
        (loss.total + FUSION_WEIGHT * fused).backward()
        nn.utils.clip_grad_norm_(segmenter.parameters(), 1.0)
        update(optimizers, options.learning_rate * _ramps(step, options.box_steps))
        progress.add(step, {"fusion": fused.detach(), **loss.parts})


def _maskless(found: LayerOutputs, side: int) -> SegOutputs:
    """What the decoder finds, with empty masks of side x side cells."""
    layers = [
        LayerOutputs(*layer) for layer in zip(found.query_logits, found.boxes, found.presence_logits, strict=True)
    ]
    prompts, queries = layers[-1].query_logits.shape
    return SegOutputs(
        mask_logits=torch.zeros(prompts, queries, side, side),
        query_logits=layers[-1].query_logits,
        boxes=layers[-1].boxes,
        presence_logits=layers[-1].presence_logits,
        semantic_logits=torch.zeros(prompts, side, side),
        features={},
        auxiliary=tuple(layers[:-1]),
    )


STAGES = {"vision": see_things, "words": join_words, "boxes": find_boxes}
"""What comes before the whole network trains; each leaves NAME.pt in OUT_DIR."""


def _lessons(steps: int) -> Iterator[PromptBatch]:
    """Batches of 128 phrases: the words that are hardest to tie to pixels alone first, then all kinds of phrases.

    Asked for all at once, the network ties colours, is right often enough, and never comes to shapes.
    """
    lessons: tuple[tuple[Mapping[tuple[str, ...], float], float], ...] = (
        ({("shape",): 1.0}, 0.25),
        ({("shape",): 1.0, ("texture", "shape"): 1.0, ("size", "shape"): 0.5, ("shape", "position"): 0.5}, 0.25),
        (FORMS, 0.5),
    )
    for number, (forms, share) in enumerate(lessons):
        scenes = SceneBatches(16, 8, first_step=number * steps, forms=forms)
        yield from _drawn(scenes, round(share * steps))


def _encoded(segmenter: Segmenter, batch: PromptBatch) -> tuple[Any, Tensor, Tensor]:
    """The DETR encoder's output, text features and text mask of every prompt, from the neck's coarsest level alone."""
    level = coarsest_map(segmenter, batch.images)
    text, mask = segmenter.read(batch.prompts)
    place = segmenter.net.vision_encoder.neck.position_encoding(level.shape, level.device, level.dtype)[:1]
    return segmenter.join(level.index_select(0, batch.image_of_prompt), place, text, mask), text, mask


def _drawn(scenes: SceneBatches, steps: int) -> Iterator[PromptBatch]:
    """The first batches of these scenes, made beside the training."""
    return islice(DataLoader(scenes, batch_size=None, num_workers=1), steps)


def train(segmenter: Segmenter, options: argparse.Namespace, held_out: Sequence[PromptBatch]) -> None:
    """The fourth stage: the whole network; the only one long enough to be taken up again in its middle."""
    fusion_head = nn.Conv2d(segmenter.feature_widths["encoder"], 1, kernel_size=1)  # thrown away afterwards
    optimizers = muon_and_adamw([segmenter, fusion_head])
    resume, first_step = options.out_dir / "training.pt", 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        segmenter.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_step = state["step"]
    batches = _drawn(SceneBatches(options.images, options.prompts, first_step), max(0, options.steps - first_step))
    progress = Progress("all", options.steps, first_step)
    for step, batch in enumerate(batches, start=first_step + 1):
        segmenter.train()
        outputs = segment(segmenter, batch, auxiliary=True)
        loss = distillation_loss(outputs, batch, None, LABELS_ONLY)
        fused = fusion_loss(fusion_head(outputs.features["encoder"]).squeeze(1), batch)
        (loss.total + FUSION_WEIGHT * fused).backward()
        norm = nn.utils.clip_grad_norm_(segmenter.parameters(), 1.0)
        assert torch.isfinite(norm), f"step {step}: gradient norm {norm}"
        update(optimizers, options.last_learning_rate * rate(step, options.steps))
        progress.add(step, {"fusion": fused.detach(), **loss.parts})
        if step % options.evaluate_every == 0 or step == options.steps:
            keep(segmenter, options, held_out, f"step {step}")
            state = {
                "model": segmenter.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
            }
            torch.save(state, resume.with_suffix(".tmp"))
            resume.with_suffix(".tmp").replace(resume)


def sharpen_masks(segmenter: Segmenter, options: argparse.Namespace) -> None:
    """The last stage: the mask decoder and the finer maps it reads; nothing else moves, so a step costs half."""
    net = segmenter.net
    learners = [net.mask_decoder, *net.vision_encoder.neck.fpn_layers[:COARSEST]]
    segmenter.requires_grad_(False)
    for part in learners:
        part.requires_grad_(True)
    freeze_unused(net)
    optimizers = muon_and_adamw(learners)
    progress = Progress("masks", options.mask_steps)
    scenes = SceneBatches(options.images, options.prompts, first_step=2 * options.steps)
    for step, batch in enumerate(_drawn(scenes, options.mask_steps), start=1):
        loss = distillation_loss(segment(segmenter, batch), batch, None, LABELS_ONLY)
        loss.total.backward()
        update(optimizers, options.learning_rate * _ramps(step, options.mask_steps))
        progress.add(step, loss.parts)


def keep(segmenter: Segmenter, options: argparse.Namespace, held_out: Sequence[PromptBatch], when: str) -> None:
    """Leaves the teacher in OUT_DIR/teacher and its figures in OUT_DIR/history.jsonl."""
    metrics = evaluate(segmenter, held_out, 0.5, device="cpu")
    print(f"{when}: unseen scenes {json.dumps(metrics)}", flush=True)
    with (options.out_dir / "history.jsonl").open("a") as history:
        history.write(json.dumps({"when": when, **metrics}) + "\n")
    save_segmenter(segmenter, options.out_dir / "teacher")


def fusion_loss(logits: Tensor, batch: PromptBatch) -> Tensor:
    """BCE + Dice of what the DETR encoder's own map says of every cell: logits [P, g, g].

    Negatives included, unlike in SAM3's semantic loss: near misses are what teaches the encoder to join words to
    what it sees, long before the decoder behind it learns from boxes.
    """
    truth = make_targets(batch, (logits.shape[-2], logits.shape[-1]), logits.device).semantic.float()
    bce = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=logits.new_tensor(3.0))
    return bce + dice_loss(logits, truth)[batch.present].mean()


def _ramps(step: int, steps: int) -> float:
    """Share of the peak learning rate: up within 50 steps, then straight down."""
    return min(1.0, step / 50, 1.02 - step / steps)


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to a hundredth."""
    done = min(1.0, max(0, step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS))
    return min(1.0, step / WARMUP_STEPS) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Progress:
    """Prints the mean of every loss and the time of a step, every REPORT_EVERY steps of a stage."""

    def __init__(self, stage: str, steps: int, first_step: int = 0) -> None:
        self.stage, self.steps, self.first_step = stage, steps, first_step
        self.started = time.monotonic()
        self.sums: dict[str, float] = defaultdict(float)

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name.removeprefix("task/")] += float(value) / REPORT_EVERY
        if step % REPORT_EVERY == 0:
            seconds = (time.monotonic() - self.started) / (step - self.first_step)
            means = " ".join(f"{name} {value:.3f}" for name, value in self.sums.items())
            print(f"{self.stage} {step}/{self.steps} {seconds:.2f} s/step {means}", flush=True)
            self.sums.clear()


if __name__ == "__main__":
    main()
