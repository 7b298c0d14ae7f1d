"""What each of two processes does for test_two_ranks.py, under one strategy: results in files.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python -m tests.sam3dist.strategies.two_ranks TEACHER OUT NAME
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import count, islice
from math import nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.engine.checkpoint import json_safe, read_state
from sam3dist.engine.loggers import History
from sam3dist.engine.optim import make_optimizer
from sam3dist.errors import NonFiniteError
from sam3dist.evaluate import evaluate
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.strategies import deepspeed
from sam3dist.strategies.processes import counts_of_all_ranks, share_weights, sum_over_ranks
from sam3dist.strategies.protocol import make_strategy
from sam3dist.types import PromptBatch
from tests.conftest import random_batch
from tests.sam3dist.runs import pupil_of, run, settings, simple_loss

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"kind": "ddp"},
    "fsdp": {"kind": "fsdp"},
    "deepspeed-1": {"kind": "deepspeed", "zero_stage": 1},
    "deepspeed-2": {"kind": "deepspeed", "zero_stage": 2},
    "deepspeed-3": {"kind": "deepspeed", "zero_stage": 3},
}
OFFLOADED: dict[str, dict[str, Any]] = {
    "fsdp": {"kind": "fsdp", "offload": True},
    "deepspeed-1": {"kind": "deepspeed", "zero_stage": 1, "offload": "optimizer"},
    "deepspeed-2": {"kind": "deepspeed", "zero_stage": 2, "offload": "optimizer"},
    "deepspeed-3": {"kind": "deepspeed", "zero_stage": 3, "offload": "optimizer"},
    "deepspeed-3-all": {"kind": "deepspeed", "zero_stage": 3, "offload": "all"},
}
STEPS, STOP = 4, 2
BROKEN = "student.net.detr_encoder.layers.1.mlp.fc1"
VALIDATION = 3  # batches


def config_of(strategy: dict[str, Any], accumulate: int, **distillation: Any) -> DistillConfig:
    return settings(
        strategy={**strategy, "precision": "fp32"},
        optim={"steps": STEPS, "accumulate": accumulate},
        distillation=distillation,
    )


def share(rank: int, ranks: int, start: int = 0) -> Iterator[PromptBatch]:
    """This rank's part of one endless list of batches, all with as many instances."""
    yield from (random_batch(2, 3, seed=seed) for seed in count(start * ranks + rank, ranks))


def validate(rank: int, ranks: int, all_reduce: Callable[[Tensor], Tensor] | None) -> Callable[[nn.Module], dict]:
    """Metrics over three batches, of which two ranks hold two and one."""
    batches = [random_batch(1, 2, seed=500 + seed) for seed in range(rank, VALIDATION, ranks)]
    return lambda module: evaluate(module, batches, 0.3, device="cpu", all_reduce=all_reduce)


def without_instances(batch: PromptBatch) -> PromptBatch:
    count = len(batch.prompts)
    return replace(batch, present=torch.zeros(count, dtype=torch.bool), masks=((),) * count)


def main(teacher_dir: str, out: Path, name: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    deepspeed.WHOLE_BELOW = 100  # else nothing of so small a network would be sharded
    teacher = load_segmenter(teacher_dir)
    result = scenario(rank, teacher, STRATEGIES[name], out / name)
    (out / f"{name}-{rank}.json").write_text(json.dumps(json_safe(result)))
    dist.destroy_process_group()


def scenario(rank: int, teacher: Any, strategy: dict[str, Any], out: Path) -> dict[str, Any]:
    config = config_of(strategy, accumulate=2)
    common = {"evaluate": validate(rank, 2, sum_over_ranks)}

    straight, _ = run(
        config, teacher, out / "shared", batches=share(rank, 2), loggers=[History(out / f"rank-{rank}")], **common
    )

    # Told to stop on rank 1 only.
    asked = count(1)
    stopped, _ = run(
        config,
        teacher,
        out / "stopped",
        batches=share(rank, 2),
        told_to_stop=lambda: rank == 1 and next(asked) >= STOP,
        **common,
    )
    written = Path(str(stopped.checkpoint))
    resumed, pupil = run(
        config, teacher, out / "resumed", batches=share(rank, 2, start=2 * STOP), resume=written, **common
    )
    del pupil

    return {
        "straight": asdict(straight),
        "resumed": asdict(resumed),
        "written": [file.name for file in sorted((written / "training").glob("*.distcp"))],
        "shared": shared(rank),
        "counts": counts_of_all_ranks({"both": 1 + rank, f"only {rank}": 5}),
        "non_finite": failure(rank, config, teacher, out),
        "left_out": left_out(rank, config, teacher, out),
        "overflowed": overflowed(rank, config, teacher),
        "uneven": uneven(rank, config_of(strategy, accumulate=1), teacher, out),
        "features_alone": features_alone(rank, config_of(strategy, accumulate=2, alpha=0.0, beta=0.0), teacher, out),
    }


def shared(rank: int) -> list[float]:
    """What a module that each rank made of its own numbers holds after `share_weights`."""
    module = nn.BatchNorm1d(3)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.fill_(rank + 1)
    share_weights(module, torch.device("cpu"))
    return [float(tensor.float().sum()) for tensor in (*module.parameters(), *module.buffers())]


def failure(rank: int, config: DistillConfig, teacher: Any, out: Path) -> str:
    """What both ranks say when a module of rank 1 gives NaN, and no update may be left out."""
    config = with_overrides(config, {"optim.max_skipped_steps": 0})
    pupil = pupil_of(teacher, config)
    if rank == 1:
        pupil.get_submodule(BROKEN).register_forward_hook(lambda _module, _inputs, output: output * torch.nan)
    try:
        run(config, teacher, out / "failed", batches=share(rank, 2), pupil=pupil, evaluate=lambda _: {"miou_all": 0.0})
    except NonFiniteError as error:
        return str(error)
    return "no error"


def left_out(rank: int, config: DistillConfig, teacher: Any, out: Path) -> tuple[int, int]:
    """Steps, and updates left out, of a run in which a module of rank 1 gives NaN in the second step alone."""
    pupil = pupil_of(teacher, config)
    seen = {"steps": 0}

    def drawn() -> Iterator[PromptBatch]:
        for number, batch in enumerate(share(rank, 2)):
            seen["steps"] = number // config.optim.accumulate + 1
            yield batch

    if rank == 1:
        part = pupil.get_submodule(BROKEN)
        part.register_forward_hook(lambda _module, _inputs, output: output * torch.nan if seen["steps"] == 2 else None)
    report, _ = run(
        config, teacher, out / "left out", batches=drawn(), pupil=pupil, evaluate=lambda _: {"miou_all": 0.0}
    )
    return report.step, read_state(Path(str(report.checkpoint))).skipped


def overflowed(rank: int, config: DistillConfig, teacher: Any) -> list[bool]:
    """Which of three updates in fp16 were overflows: a loss too large on rank 1, a NaN on rank 1, a good one."""
    half = with_overrides(config, {"strategy.precision": "fp16", "optim.accumulate": 1})
    strategy = make_strategy(half)
    strategy.scale.value = 64.0
    module, _ = strategy.setup(pupil_of(teacher, half), lambda module: make_optimizer(module, half.optim))
    module.train()
    told = []
    for factor in (1e9, nan, 1.0):
        strategy.backward(simple_loss(module) * (factor if rank == 1 else 1.0))
        strategy.step(half.optim.clip_grad_norm)
        told.append(strategy.overflowed)
    return told


def uneven(rank: int, config: DistillConfig, teacher: Any, out: Path) -> int:
    """Steps of a run in which rank 1 once has no instance at all, and one phrase only."""
    batches = list(islice(share(rank, 2), STEPS))
    if rank == 1:
        batches[1] = without_instances(random_batch(1, 1))
    report, _ = run(config, teacher, out / "uneven", batches=iter(batches), evaluate=lambda _: {"miou_all": 0.0})
    return report.step


def features_alone(rank: int, config: DistillConfig, teacher: Any, out: Path) -> int:
    """Steps of a run whose loss never reaches the decoder."""
    report, _ = run(config, teacher, out / "features", batches=share(rank, 2), evaluate=lambda _: {"miou_all": 0.0})
    return report.step


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
