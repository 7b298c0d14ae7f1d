"""What each of one, two or three processes does for test_equal_curves.py: curves of every strategy, and resumed runs.

RANK=0 WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python -m tests.sam3dist.strategies.any_ranks TEACHER OUT
"""

import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sam3dist.config.distill import DistillConfig
from sam3dist.engine.loggers import History
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import Segmenter
from sam3dist.strategies import deepspeed
from sam3dist.types import PromptBatch
from tests.conftest import random_batch
from tests.sam3dist.runs import run, settings
from tests.sam3dist.strategies.two_ranks import OFFLOADED, STRATEGIES

SMALL = {"encoder_layers": 1, "decoder_layers": 1, "text_depth": 1}
"""A layer of each kind is enough: most of the time goes into calls, above all those of ZeRO-3's hooks."""
STEPS, BATCHES = 20, 6
"""Updates of a run, and the batches of each, which any number of ranks below four shares evenly."""
SAVED, RESUMED = 10, 12
"""The step at which two ranks save, and the one at which others stop who went on from there."""
ALL = STRATEGIES | {f"{name}-offloaded": strategy for name, strategy in OFFLOADED.items()}
PAIRS = {
    1: {
        "ddp": "fsdp",
        "fsdp": "deepspeed-3",
        "deepspeed-1": "ddp",
        "deepspeed-2": "deepspeed-1",
        "deepspeed-3": "deepspeed-2",
    },
    3: {
        "ddp": "deepspeed-2-offloaded",
        "fsdp": "ddp",
        "deepspeed-1": "deepspeed-3-all-offloaded",
        "deepspeed-2": "fsdp-offloaded",
        "deepspeed-3": "deepspeed-1",
    },
}
"""Who goes on, on so many ranks, from what another strategy saved on two."""


def config_of(strategy: dict[str, Any], ranks: int) -> DistillConfig:
    return settings(
        student=SMALL,
        strategy={**strategy, "precision": "fp32"},
        optim={"steps": STEPS, "accumulate": BATCHES // ranks},
        checkpoint={"every_steps": SAVED},
    )


def share(rank: int, ranks: int, start: int = 0) -> Iterator[PromptBatch]:
    """This rank's part of one endless list of batches of one image, all with as many instances, from `start` on."""
    yield from (random_batch(1, 2, seed=seed) for seed in count(start + rank, ranks))


def main(teacher_dir: str, out: Path) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    deepspeed.WHOLE_BELOW = 100  # else nothing of so small a network would be sharded
    teacher = load_segmenter(teacher_dir)
    for name, strategy in STRATEGIES.items():
        curve(rank, ranks, teacher, strategy, out / f"{ranks}-{name}")
    for saved, strategy_name in PAIRS.get(ranks, {}).items():
        checkpoint = out / f"2-{saved}" / f"step-{SAVED:08d}"
        go_on(rank, ranks, teacher, ALL[strategy_name], checkpoint, out / f"{ranks}-{saved}-{strategy_name}")
    dist.destroy_process_group()


def curve(rank: int, ranks: int, teacher: Segmenter, strategy: dict[str, Any], out: Path) -> None:
    """A run with its history."""
    began, worked = time.perf_counter(), time.process_time()
    run(
        config_of(strategy, ranks),
        teacher,
        out,
        batches=share(rank, ranks),
        evaluate=lambda _: {"miou_all": 0.0},
        loggers=[History(out)],
    )
    worked = time.process_time() - worked
    print(out.name, f"{time.perf_counter() - began:.1f} s, of which computing {worked:.1f} s", flush=True)


def go_on(rank: int, ranks: int, teacher: Segmenter, strategy: dict[str, Any], checkpoint: Path, out: Path) -> None:
    """Two more steps from a checkpoint."""
    asked = count(SAVED + 1)
    run(
        config_of(strategy, ranks),
        teacher,
        out,
        batches=share(rank, ranks, start=SAVED * BATCHES),
        evaluate=lambda _: {"miou_all": 0.0},
        resume=checkpoint,
        told_to_stop=lambda: next(asked) >= RESUMED,
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
