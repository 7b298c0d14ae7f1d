"""DistillConfig -> one run on the cluster, as many workers as `strategy.num_workers`."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.mistakes import GiveUpOnMistakes, explained
from cluster.preflight import check_resources
from cluster.session import session
from cluster.stopping import STOP, checkpoint_on_sigterm
from cluster.streams import TRAIN, reference_dataset, split_config
from cluster.taught import require_followed, stored_answers
from sam3dist.answers import imitated_features
from sam3dist.config.load import to_yaml, with_overrides
from sam3dist.data.samples.write import scene_shards
from sam3dist.data.shards import open_shards
from sam3dist.engine.clock import TIMES
from sam3dist.errors import ConfigError
from sam3dist.teaching.teachers import foreign_file

if TYPE_CHECKING:
    from sam3dist.config.distill import DataConfig, DistillConfig, StrategyConfig
    from sam3dist.teaching.store import AnswerStore

CHECKPOINTS = "checkpoints"
INHERITED = "inherited.json"
"""In a run directory: what its student had of its teacher before it trained."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""In the former: which of them Ray Train knows, and resumes from."""
TRAIN_SCENES, VAL_SCENES = 512, 64
"""Generated images where no data is named."""
MOST_START_FAILURES = 3
"""Times that workers may fail to start; Ray's default is to try for ever."""
EXTRA_KEYS = ("before", "params_millions", "megabytes", "score", "step", "samples_per_second", *TIMES)
"""What the report of a run, and of a trial, has of its last evaluation."""


def run_training(config: DistillConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """What report.json says of a training run: metrics, before, params_millions, megabytes, checkpoint, ...

    Its "rejected" counts the rows set aside while training, by reason; a bad row counts once in each epoch.

    Everything is written below `run_dir` (by default `run.dir`, else runs/train-NAME), which the workers must see
    under the same path. The same directory again resumes at its last checkpoint, or, if the run was complete, gives
    its result again. Connects to a cluster (`session`) unless the process is connected.

    Raises what a person can mend as it was raised in the worker, CheckpointError and ResourceError before anything
    starts, and Ray's TrainingFailedError once `strategy.max_failures` worker groups are lost.
    """
    run_dir = run_dir or Path(config.run.dir or f"runs/train-{config.name}")
    config = located(config, run_dir.resolve())
    require_resumable(config, run_dir.resolve())  # `fit` asks as well, but by then a cluster is up
    answers = stored_answers(config)
    with session(config.run):
        check_resources(config.strategy, wait_s=config.run.wait_for_nodes_s)
        return fit(config, run_dir.resolve(), answers)


def fit(
    config: DistillConfig,
    run_dir: Path,
    answers: AnswerStore | None = None,
    *,
    callbacks: Sequence[UserCallback] = (),
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`run_training` on a connected cluster that has room, with absolute paths; a trial's part of a search.

    answers: of its teacher, which then is not asked. callbacks: of Ray Train, such as the link to Tune. labels: of its
    metrics, by default the name of the run.
    """
    shards = open_shards(str(config.data.train))
    open_shards(str(config.data.val))
    if answers is not None:
        require_followed(config)  # a search may vary what decides it
    require_resumable(config, run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (run_dir / STOP).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _train_worker,
        # A trial has its line per report; the progress of all trials at once would bury it.
        train_loop_config={
            "config": config,
            "run_dir": str(run_dir),
            "answers": answers and replace(answers, features=imitated_features(config.distillation)),
            "began": time.time(),
            "labels": {"run": config.name, "trial": "", **(labels or {})},
            "quiet": bool(callbacks),
        },
        datasets={TRAIN: reference_dataset(shards, config)},
        dataset_config=split_config(),
        scaling_config=scaling(config.strategy),
        torch_config=TorchConfig(backend="nccl" if config.strategy.use_gpu else "gloo"),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=str(run_dir),
            failure_config=failures(config.strategy),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            callbacks=[GiveUpOnMistakes(), *callbacks],
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": threads(config.strategy)}},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        with explained(), checkpoint_on_sigterm(run_dir):
            result = trainer.fit()
    finally:
        _sweep(run_dir / CHECKPOINTS)
    report = result.return_value
    assert report is not None
    assert result.checkpoint is not None
    state = json.loads((Path(result.checkpoint.path) / "state.json").read_text(encoding="utf-8"))
    return {
        "metrics": report["metrics"],
        **{key: report[key] for key in EXTRA_KEYS},
        # A run that was told to stop goes on after its last evaluation, and its last checkpoint knows how far.
        "step": state["step"],
        "rejected": state.get("rejected", {}),  # runs that ended before this was counted lack it
        "measured_at": report["step"],
        "complete": report["step"] >= config.optim.steps,
        "checkpoint": result.checkpoint.path,
        "inherited": _inherited(run_dir),
        "data": {"train": config.data.train, "val": config.data.val},
    }


def _inherited(run_dir: Path) -> dict[str, Any] | None:
    """What the student had of its teacher before it trained; None of one that began with nothing."""
    file = run_dir / INHERITED
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    # Imported by the workers alone: the driver of a trial need not spend ten seconds on networks it never builds.
    from cluster.worker import train_worker

    return train_worker(settings)


def require_resumable(config: DistillConfig, run_dir: Path) -> None:
    """Raise CheckpointError where the run would go on from a checkpoint that was trained with other settings.

    The workers refuse it, too, but only after the directory's config.yaml is that of this run.
    """
    snapshot = run_dir / CHECKPOINTS / SNAPSHOT
    if not snapshot.is_file():
        return
    latest = json.loads(snapshot.read_text(encoding="utf-8"))["latest_checkpoint_result"]
    if latest is None:
        return
    # Here, for the sake of fresh trials: their drivers need not spend ten seconds on networks they never build.
    from sam3dist.engine.checkpoint import read_state, require_same_run, require_same_settings

    checkpoint = run_dir / CHECKPOINTS / latest["checkpoint_dir_name"]
    state = read_state(checkpoint)
    fresh = replace(state, strategy=config.strategy.kind, world_size=config.strategy.num_workers)
    require_same_run(checkpoint, state, fresh)
    require_same_settings(checkpoint, config, finished=state.step >= config.optim.steps)


def located(config: DistillConfig, run_dir: Path) -> DistillConfig:
    """The same run with its paths absolute, since workers start in directories of their own.

    Where no data is named, scenes are generated in the run directory.
    """
    named, scenes = named_data(config.data), run_dir / "scenes"
    if named is None:
        print(f"data.train and data.val are not named: generated scenes of {scenes} take their place", flush=True)
        seed = config.run.seed
        named = scene_shards(scenes, TRAIN_SCENES, seed), scene_shards(scenes, VAL_SCENES, seed + 1)
    named_in_full = {"data.train": str(named[0].resolve()), "data.val": str(named[1].resolve())}
    return with_overrides(config, {**absolute_paths(config), **named_in_full})


def absolute_paths(config: DistillConfig) -> dict[str, str]:
    """Overrides that make every path of a configuration absolute."""
    keys = {
        "data.train": config.data.train,
        "data.val": config.data.val,
        "teacher.answers": config.teacher.answers,
        "teacher.adapter": config.teacher.adapter,
    }
    found = {key: str(Path(path).resolve()) for key, path in keys.items() if path is not None}
    for key, network in (("teacher.source", config.teacher.source), ("student.like", config.student.like)):
        if network is not None and Path(network).exists():
            found[key] = str(Path(network).resolve())
    foreign = foreign_file(config.teacher.source)
    if foreign is not None:
        found["teacher.source"] = f"{foreign[0].resolve()}:{foreign[1]}"
    return found


def named_data(data: DataConfig) -> tuple[Path, Path] | None:
    """The shards to train and to evaluate on, or None where neither is named; ConfigError where just one is."""
    if data.train is not None and data.val is not None:
        return Path(data.train), Path(data.val)
    if data.train is None and data.val is None:
        return None
    given, missing = ("train", "val") if data.val is None else ("val", "train")
    raise ConfigError(
        f"data.{missing}: not named, though data.{given}={getattr(data, given)} is; name both, or neither for "
        "generated scenes."
    )


def scaling(strategy: StrategyConfig) -> ScalingConfig:
    """The workers Ray Train is to start, at least one: none would be its local mode, which keeps nothing."""
    gpu = {"GPU": 1.0} if strategy.use_gpu else {}
    return ScalingConfig(
        num_workers=strategy.num_workers,
        use_gpu=strategy.use_gpu,
        resources_per_worker={"CPU": strategy.cpus_per_worker, **gpu},
    )


def failures(strategy: StrategyConfig) -> FailureConfig:
    """How often Ray Train tries again: with workers that were lost, and with ones that did not start."""
    return FailureConfig(max_failures=strategy.max_failures, controller_failure_limit=MOST_START_FAILURES)


def threads(strategy: StrategyConfig) -> str:
    """OMP_NUM_THREADS of a worker: its CPUs, unless a person has set it."""
    return os.environ.get("OMP_NUM_THREADS", str(max(1, int(strategy.cpus_per_worker))))


def _sweep(checkpoints: Path) -> None:
    """Delete directories of checkpoints that a crash cut short: Ray Train's manifest does not name them."""
    manifest = checkpoints / SNAPSHOT
    if not manifest.is_file():
        return
    known = manifest.read_text(encoding="utf-8")
    for found in checkpoints.glob("checkpoint_*"):
        if found.is_dir() and found.name not in known:
            shutil.rmtree(found, ignore_errors=True)
