"""The checks behind run.sh: the same answers as on the CPU, training in bf16, and the full-size network's appetite."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import Sam3Config, Sam3Model

from sam3dist.answers import MASK_CODES, decoded, imitable, mask_logits
from sam3dist.config.plain import plain
from sam3dist.data.samples.live import SceneBatches, scene_batch
from sam3dist.engine.folder import CheckpointFolder
from sam3dist.engine.loop import train
from sam3dist.evaluate import evaluate
from sam3dist.losses import distillation_loss
from sam3dist.models.segmenter import Pupil, Segmenter, segment
from sam3dist.models.student import build_student
from sam3dist.models.teacher import load_teacher
from sam3dist.strategies.protocol import make_strategy
from sam3dist.teaching.codec import decode_answer, encode_answers, stack_answers
from sam3dist.teaching.fidelity import fidelity
from sam3dist.types import PromptBatch

HERE = Path(__file__).parent
SECONDS_TO_MEASURE = 10
LOOKED_AT = [scene_batch([(3, 3, number) for number in range(8)], 4)]
"""For a student.init that measures the teacher's work."""


def same_answers_as_on_the_cpu() -> dict[str, float]:
    """Largest differences between CPU and GPU, in float32 and in bf16, over logits of a scale of about 10."""
    teacher = load_teacher("embedded", "cpu", "fp32")
    batch = scene_batch([(3, 0, number) for number in range(8)], None)
    on_gpu = copy.deepcopy(teacher).cuda()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        expected = segment(teacher, batch)
        exact = segment(on_gpu, batch.to("cuda"))
        with torch.autocast("cuda", dtype=torch.bfloat16):
            rough = segment(on_gpu, batch.to("cuda"))
    agree = ((rough.mask_logits.cpu() > 0) == (expected.mask_logits > 0)).float().mean()
    error = (exact.mask_logits.cpu() - expected.mask_logits).abs().max()
    assert error < 1e-2, f"float32 masks differ by {error}"
    assert agree > 0.99, f"bf16 masks agree on {agree:.4f} of the cells"
    return {"fp32_mask_logit_error": float(error), "bf16_mask_agreement": float(agree)}


def distilling_works(kind: str, precision: str = "bf16", offload: bool = False) -> dict[str, float]:
    """A student of the embedded teacher after 300 steps, before and after."""
    config = plain(HERE / "config.yaml")
    config.strategy.kind = kind
    config.strategy.precision = precision
    config.strategy.reshard_after_forward = True
    config.strategy.offload = offload
    teacher = load_teacher("embedded", "cuda", "auto")
    student = build_student(config.student, teacher, 0, LOOKED_AT)
    held_out = [scene_batch([(3, 1, 8 * start + k) for k in range(8)], None) for start in range(8)]

    def measure(module: torch.nn.Module) -> dict[str, float]:
        return evaluate(module, held_out, 0.5, device="cuda")

    with tempfile.TemporaryDirectory() as directory:
        report = train(
            config,
            pupil=Pupil(student, teacher.feature_widths),
            teacher=teacher,
            strategy=make_strategy(config, torch.device("cuda")),
            batches=_scenes(),
            evaluate=measure,
            publish=lambda report: None,
            folder=CheckpointFolder(directory),
        )
    before, after = report.before["miou_positive"], report.metrics["miou_positive"]
    assert after > before + 0.05, f"{kind}: mIoU went from {before:.3f} to {after:.3f}"
    return {"before": before, "after": after, "images_per_second": report.samples_per_second}


def full_size_network() -> dict[str, float]:
    """Speed and memory of SAM3's 840 million parameters (random here) at 1008 pixels in bf16."""
    torch.manual_seed(0)
    net = Sam3Model(Sam3Config()).to("cuda", torch.bfloat16).eval().requires_grad_(False)
    segmenter = Segmenter(net, load_teacher("embedded").tokenizer)
    figures: dict[str, float] = {}
    for prompts in (1, 4, 16):
        batch = _blank(prompts)
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
            figures[f"ms_{prompts}_prompts"] = _milliseconds(lambda batch=batch: segment(segmenter, batch))
        figures[f"peak_gb_{prompts}_prompts"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def losses_agree() -> dict[str, float]:
    """The total loss of a student under the embedded teacher, on both devices."""
    config = plain(HERE / "config.yaml")
    teacher = load_teacher("embedded", "cpu", "fp32")
    pupil = Pupil(build_student(config.student, teacher, 1, LOOKED_AT), teacher.feature_widths)
    batch = scene_batch([(3, 2, number) for number in range(4)], 4)
    totals = []
    for device in ("cpu", "cuda"):
        pupil.to(device), teacher.to(device)
        moved = batch.to(device)
        with torch.no_grad():
            taught = imitable(segment(teacher, moved), config.distillation.features)
            totals.append(float(distillation_loss(segment(pupil, moved), moved, taught, config.distillation).total))
    assert abs(totals[0] - totals[1]) < 1e-2 * abs(totals[0]), totals
    return {"cpu": totals[0], "cuda": totals[1]}


def stored_answers_come_back() -> dict[str, float]:
    """The embedded teacher's answers through bytes and back to the device: what that changes, and what it takes."""
    teacher = load_teacher("embedded", "cuda", "auto")
    batch = scene_batch([(3, 3, number) for number in range(16)], 8).to("cuda")
    with torch.no_grad():
        outputs = segment(teacher, batch)
    said = imitable(outputs)
    stored = encode_answers(said)
    found = decoded(stack_answers([decode_answer(data) for data in stored], {}).to("cuda"))
    assert found.counts == said.counts
    assert torch.equal(found.mask_logits > 0, said.mask_logits > 0)
    measured = fidelity(outputs, stored).means()
    assert measured["mask_iou"] > 0.99, measured
    assert measured["score_kl"] < 1e-3, measured
    codes = torch.randint(0, MASK_CODES, (64, 288, 288), dtype=torch.uint8, device="cuda")
    return {
        "mask_iou": measured["mask_iou"],
        "score_kl": measured["score_kl"],
        "ms_decoding_64_maps_of_288": _milliseconds(lambda: mask_logits(codes)),
    }


def _scenes() -> Iterator[PromptBatch]:
    loader = torch.utils.data.DataLoader(SceneBatches(8, 4), batch_size=None, num_workers=8)
    yield from loader


def _blank(prompts: int) -> PromptBatch:
    return PromptBatch(
        images=torch.zeros(1, 3, 1008, 1008, dtype=torch.uint8, device="cuda"),
        image_ids=(0,),
        image_sizes=((1008, 1008),),
        prompts=tuple(f"thing number {number}" for number in range(prompts)),
        image_of_prompt=torch.zeros(prompts, dtype=torch.long, device="cuda"),
        present=torch.zeros(prompts, dtype=torch.bool, device="cuda"),
        masks=((),) * prompts,
        ignore=(None,) * prompts,
        exhaustive=torch.ones(prompts, dtype=torch.bool, device="cuda"),
    )


def _milliseconds(call: Callable[[], object]) -> float:
    """Median wall time of a call after three warm-ups."""
    for _ in range(3):
        call()
    times, until = [], time.monotonic() + SECONDS_TO_MEASURE
    while time.monotonic() < until:
        torch.cuda.synchronize()
        start = time.monotonic()
        call()
        torch.cuda.synchronize()
        times.append((time.monotonic() - start) * 1000)
    return sorted(times)[len(times) // 2]


def main() -> None:
    checks: dict[str, Callable[[], dict[str, float]]] = {
        "same_answers": same_answers_as_on_the_cpu,
        "losses": losses_agree,
        "stored": stored_answers_come_back,
        "ddp": lambda: distilling_works("ddp"),
        "fsdp": lambda: distilling_works("fsdp"),
        "ddp_fp16": lambda: distilling_works("ddp", "fp16"),
        "fsdp_fp16_offload": lambda: distilling_works("fsdp", "fp16", offload=True),
        "full_size": full_size_network,
    }
    report: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name, check in checks.items():
        started = time.monotonic()
        report[name] = check()
        print(f"{name}: {report[name]} in {time.monotonic() - started:.0f} s", flush=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
