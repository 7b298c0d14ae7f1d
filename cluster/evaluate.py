"""`python -m cluster.evaluate CHECKPOINT SHARDS [dotted.key=value ...]`: any student or teacher, on many workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import LoggingConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster import job
from cluster.environment import worker_environment
from cluster.mistakes import GiveUpOnMistakes, explained
from cluster.preflight import check_resources
from cluster.session import session
from cluster.trainer import failures, scaling
from sam3dist.config.load import to_yaml
from sam3dist.config.words import EVAL_TAKES, run_dir, settings
from sam3dist.data.batches import evaluation_batches
from sam3dist.data.rejects import Rejects
from sam3dist.data.shards import open_shards
from sam3dist.evaluate import evaluate
from sam3dist.models.size import model_size
from sam3dist.models.source import resolve
from sam3dist.models.teacher import load_teacher
from sam3dist.report import write_report
from sam3dist.strategies.processes import counts_of_all_ranks, own_device, rank_and_size, sum_over_ranks

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

TAKES = (*EVAL_TAKES, "strategy", "run.address", "run.num_cpus", "run.wait_for_nodes_s")
"""As the verb, and what the workers and their cluster are."""
COUNTS = ("num_pairs", "num_positive", "num_negative")


def run_evaluation(config: DistillConfig, checkpoint: str, shards: str, run_dir: Path) -> dict[str, Any]:
    """What report.json says of an evaluation by `strategy.num_workers` workers, each with its share of the rows.

    checkpoint: whatever `load_teacher` takes, or a run directory. Connects to a cluster unless the process is
    connected. Raises CheckpointError, DataError and ResourceError.
    """
    open_shards(shards)  # a wrong path ends here
    source = resolve(checkpoint)
    source = str(Path(source).resolve()) if Path(source).exists() else source
    with session(config.run):
        check_resources(config.strategy, wait_s=config.run.wait_for_nodes_s)
        trainer = TorchTrainer(
            evaluate_worker,
            train_loop_config={"config": config, "checkpoint": source, "shards": str(Path(shards).resolve())},
            scaling_config=scaling(config.strategy),
            torch_config=TorchConfig(backend="nccl" if config.strategy.use_gpu else "gloo"),
            run_config=RunConfig(
                name="evaluation",
                storage_path=str(run_dir.resolve()),
                failure_config=failures(config.strategy),
                callbacks=[GiveUpOnMistakes()],
                worker_runtime_env={"env_vars": worker_environment(config.strategy)},
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        with explained():
            return {"checkpoint": source, "shards": shards, **trainer.fit().return_value}


def evaluate_worker(given: dict[str, Any]) -> dict[str, Any]:
    """One worker's part; metrics and counts are those of all."""
    config: DistillConfig = given["config"]
    device = own_device(config.strategy)
    model = load_teacher(given["checkpoint"], device, config.teacher.precision, config.teacher.geometry_token)
    rank, world_size = rank_and_size()
    rejects = Rejects()
    batches = evaluation_batches(
        open_shards(given["shards"]),
        config.data,
        model.image_size,
        rank,
        world_size,
        max_images=config.eval.max_images,
        images_per_batch=config.eval.images_per_batch,
        prompts_per_batch=config.eval.prompts_per_batch,
        rejects=rejects,
    )
    reduce = sum_over_ranks if world_size > 1 else None
    metrics = evaluate(model, batches, config.eval.threshold, device=device, all_reduce=reduce)
    size = model_size(model.net.config)
    return {
        "metrics": metrics,
        "rejected": counts_of_all_ranks(rejects.by_reason),
        **{name: metrics[name] for name in COUNTS},
        "params_millions": size.params_millions,
        "megabytes": size.megabytes,
    }


def work(words: Sequence[str]) -> Path:
    started = time.perf_counter()
    (checkpoint, shards), overrides = job.split(words, "CHECKPOINT", "SHARDS")
    config = settings("eval", overrides, TAKES)
    directory = job.lasting(str(run_dir(config, "eval", checkpoint, shards)))
    result = run_evaluation(config, checkpoint, shards, directory)
    (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_report(directory, {"verb": "eval", "seconds": time.perf_counter() - started, **result})
    print(job.numbers(result["metrics"]))
    return directory


if __name__ == "__main__":
    job.run(work)
