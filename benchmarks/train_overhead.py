"""What Ray costs a training run: the same steps in a Ray Train worker and in a bare process, taking turns.

    python benchmarks/train_overhead.py [--repeats 3] [--pairs 15] [--block 5] [key=value ...]

Both train the smoke preset's student on the same scenes, from the same weights, in the same order, with one thread and
the same niceness: once as `sam3dist train` does (Ray Train, references through Ray Data, Prometheus), once as a plain
loop around `sam3dist.engine.loop.train`, without importing ray. Both live at the same time, and one is frozen with all
its processes (SIGSTOP) while the other makes a block of steps, since other work on the machine changes the pace from
minute to minute. A block's time is that until history.jsonl has its line; its losses must be the same in both.
Ratios are medians over pairs of neighbouring blocks: of the wall time; of that without the time in which the thread
that trains had to wait for a CPU, which on a busy machine is most of the noise; and of the CPU time of its process.
What Ray's other processes compute meanwhile is told beside it, for machines without a core to spare. Prints a table
and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parts.turns import Arm, Block

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

WARM = 2
"""Blocks of each that do not count: the first steps allocate, and the cluster is still busy with itself."""
COLUMNS = {"seconds": 12, "undelayed_seconds": 16, "cpu_seconds": 12, "others_cpu_seconds": 20, "start_seconds": 12}
"""Of the table, with their widths."""
ENDLESS = 1_000_000
"""Steps of a run that is ended from here."""
WORKER = "ray::RayTrainWorker"
"""What Ray calls the process that trains."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="times that both are started")
    parser.add_argument("--pairs", type=int, default=15, help="blocks of each that count, every time")
    parser.add_argument("--block", type=int, default=5, help="steps of a block")
    parser.add_argument("--scenes", type=int, default=96, help="training images")
    parser.add_argument("--arm", nargs=2, metavar=("ray|bare", "DIR"), help="what this script starts itself")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the smoke preset")
    options = parser.parse_args()
    if options.arm:
        {"ray": through_ray, "bare": bare}[options.arm[0]](composed(options), Path(options.arm[1]))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else both arms stay behind, one of them frozen
    start: dict[str, list[float]] = {"ray": [], "bare": []}
    pairs: list[tuple[Block, Block]] = []
    each: list[float] = []
    for _ in range(options.repeats):
        own = turns(options, start)
        each.append(_median_ratio(own, "seconds"))
        print(f"ray over bare {each[-1]:.4f}, {options.pairs} pairs", file=sys.stderr, flush=True)
        pairs += own
    found = {**summary(pairs, options.block), "each": each, "pairs": options.pairs, "steps_of_a_block": options.block}
    for name, seconds in start.items():
        found[name]["start_seconds"] = statistics.median(seconds)
    print(
        f"{'':6}{'a step (s)':>12}{'with a free CPU':>16}{'CPU of it':>12}{'of other processes':>20}{'start (s)':>12}"
    )
    for name in start:
        print(f"{name:6}" + "".join(f"{found[name][key]:>{width}.3f}" for key, width in COLUMNS.items()))
    low, high = found["middle_half"]
    print(f"ray over bare {found['ray_over_bare']:.4f}; the middle half of all pairs {low:.3f} to {high:.3f}")
    print(f"with a free CPU {found['undelayed_ray_over_bare']:.4f}, CPU time {found['cpu_ray_over_bare']:.4f}")
    print(json.dumps(found))


def turns(options: argparse.Namespace, start: dict[str, list[float]]) -> list[tuple[Block, Block]]:
    """Start both, let them take turns, end both: the blocks that count, in pairs. Adds how long they took to start."""
    from sam3dist.data.samples.write import scene_shards

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        train, val = (scene_shards(Path(folder), count, seed) for seed, count in ((300, options.scenes), (301, 4)))
        data = [f"data.train={train}", f"data.val={val}"]
        arms = {}
        for name, worker in (("ray", WORKER), ("bare", None)):
            run_dir = Path(folder, name)
            words = ["--arm", name, str(run_dir), "--block", str(options.block), *options.overrides, *data]
            arms[name] = stack.enter_context(Arm([sys.executable, __file__, *words], run_dir, worker))
            start[name].append(arms[name].until_first_line())
            arms[name].freeze()
        arms["bare"].renice(arms["ray"].niceness())
        blocks: dict[str, list[Block]] = {name: [] for name in arms}
        for turn in range(WARM + options.pairs):
            # Each goes first every other time, as what comes first meets the machine as the last pair left it.
            for name in ("ray", "bare") if turn % 2 else ("bare", "ray"):
                blocks[name].append(arms[name].block())
        require_same_losses(*(arm.losses() for arm in arms.values()))
    return list(zip(blocks["ray"][WARM:], blocks["bare"][WARM:], strict=True))


def summary(pairs: Sequence[tuple[Block, Block]], steps: int) -> dict[str, Any]:
    """The ratios, and what a step took in either."""
    ratios = sorted(one.seconds / other.seconds for one, other in pairs)
    found: dict[str, Any] = {
        "ray_over_bare": statistics.median(ratios),
        "middle_half": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "undelayed_ray_over_bare": _median_ratio(pairs, "undelayed_seconds"),
        "cpu_ray_over_bare": _median_ratio(pairs, "cpu_seconds"),
    }
    for name, blocks in zip(("ray", "bare"), zip(*pairs, strict=True), strict=True):
        for key in ("seconds", "undelayed_seconds", "cpu_seconds", "others_cpu_seconds"):
            found.setdefault(name, {})[key] = statistics.median(getattr(block, key) for block in blocks) / steps
    return found


def _median_ratio(pairs: Sequence[tuple[Block, Block]], key: str) -> float:
    return statistics.median(getattr(one, key) / getattr(other, key) for one, other in pairs)


def require_same_losses(one: Sequence[float], other: Sequence[float]) -> None:
    common = list(zip(one, other, strict=False))
    assert common, "no block was made by both"
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in common), f"not the same steps: {common}"


def composed(options: argparse.Namespace) -> DistillConfig:
    """The run of an arm: it neither evaluates nor saves until somebody ends it."""
    from sam3dist.config.load import load_preset, with_overrides

    changes = dict(item.split("=", 1) for item in options.overrides)
    steps = dict.fromkeys(("optim.steps", "eval.every_steps", "checkpoint.every_steps"), ENDLESS)
    logs = {"run.log_every_steps": options.block, "run.loggers": (), "run.num_cpus": os.cpu_count()}
    return with_overrides(load_preset("smoke"), {**steps, **logs, "optim.warmup_steps": 0, **changes})


def through_ray(config: DistillConfig, run_dir: Path) -> None:
    from cluster.stopping import leave_on_sigterm
    from cluster.trainer import run_training

    leave_on_sigterm()
    run_training(config, run_dir)


def bare(config: DistillConfig, run_dir: Path) -> None:
    import torch

    from sam3dist.data.batches import calibration_batches, endless, evaluation_batches
    from sam3dist.data.shards import open_shards
    from sam3dist.engine.folder import CheckpointFolder
    from sam3dist.engine.loggers import make_loggers
    from sam3dist.engine.loop import train
    from sam3dist.evaluate import evaluate
    from sam3dist.models.segmenter import Pupil
    from sam3dist.models.student import build_student
    from sam3dist.models.teacher import load_teacher
    from sam3dist.strategies.protocol import make_strategy

    teacher = load_teacher(config.teacher.source)
    learn, test = open_shards(str(config.data.train)), open_shards(str(config.data.val))
    images, seed = config.student.calibration_images, config.run.seed
    looked_at = calibration_batches(learn, config.data, teacher.image_size, images, seed)
    student = build_student(config.student, teacher, seed, looked_at)
    torch.manual_seed(seed)
    pupil = Pupil(student, teacher.feature_widths if config.distillation.gamma > 0 else {})
    side = max(student.image_size, teacher.image_size)
    train(
        config,
        pupil=pupil,
        teacher=teacher,
        strategy=make_strategy(config),
        batches=endless(learn.row_groups, config.data, side, seed=seed),
        evaluate=lambda module: evaluate(
            module, evaluation_batches(test, config.data, student.image_size), config.eval.threshold, device="cpu"
        ),
        publish=lambda report: None,
        folder=CheckpointFolder(run_dir / "checkpoints"),
        loggers=make_loggers(config, run_dir),
    )
    assert "ray" not in sys.modules


if __name__ == "__main__":
    main()
