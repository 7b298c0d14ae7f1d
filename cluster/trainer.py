"""DistillConfig -> one run on the cluster, as many workers as `strategy.num_workers`."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.data
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.environment import worker_environment
from cluster.mistakes import GiveUpOnMistakes, explained
from cluster.preflight import check_resources
from cluster.session import session
from cluster.stopping import checkpoint_on_sigterm, take_back
from cluster.streams import TRAIN, make_deal, reference_dataset, split_config
from cluster.taught import require_followed, stored_answers
from cluster.teachers import Teachers, teachers
from sam3dist.answers import imitated_features
from sam3dist.config.load import to_yaml, with_overrides
from sam3dist.data.samples.write import scene_shards
from sam3dist.data.shards import open_shards
from sam3dist.engine.clock import TIMES
from sam3dist.engine.folder import STUDENT, CheckpointFolder
from sam3dist.errors import ConfigError
from sam3dist.teaching.teachers import foreign_file

if TYPE_CHECKING:
    from sam3dist.config.distill import DataConfig, DistillConfig, StrategyConfig
    from sam3dist.engine.checkpoint import TrainingState
    from sam3dist.teaching.store import AnswerStore

CHECKPOINTS, RAY = "checkpoints", "ray"
"""In a run directory: the checkpoints, unless checkpoint.storage_path says where else, and Ray Train's own state."""
INHERITED, HISTORY = "inherited.json", "history.jsonl"
"""In a run directory: what its student had of its teacher before it trained, and its curves."""
TRAIN_SCENES, VAL_SCENES = 512, 64
"""Generated images where no data is named."""
MOST_START_FAILURES = 3
"""Times that workers may fail to start; Ray's default is to try for ever."""
SIZES = ("params_millions", "megabytes", "latency_ms", "size")
EXTRA_KEYS = ("before", *SIZES, "score", "step", "samples_per_second", *TIMES)
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
    with session(config.run, elastic=config.strategy.min_workers is not None):
        check_resources(config.strategy, config.teacher.workers, wait_s=config.run.wait_for_nodes_s)
        with teachers(config) as started:
            return fit(config, run_dir.resolve(), answers, started)


def fit(
    config: DistillConfig,
    run_dir: Path,
    answers: AnswerStore | None = None,
    asked: Teachers | None = None,
    *,
    callbacks: Sequence[UserCallback] = (),
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`run_training` on a connected cluster that has room, with absolute paths; a trial's part of a search.

    answers: of its teacher, which then is not asked. asked: its teacher, if that runs elsewhere. callbacks: of Ray
    Train, such as the link to Tune. labels: of its metrics, by default the name of the run.
    """
    shards = open_shards(str(config.data.train))
    open_shards(str(config.data.val))
    if answers is not None:
        require_followed(config)  # a search may vary what decides it
    state = require_resumable(config, run_dir)
    deal = make_deal(shards, config, state.segments if state else ())
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    take_back(run_dir)
    folder = checkpoint_folder(config, run_dir)
    given = {
        "config": config,
        "run_dir": str(run_dir),
        "answers": answers and replace(answers, features=imitated_features(config.distillation)),
        "teachers": asked,
        "deal": deal,
        "began": time.time(),
        "labels": {"run": config.name, "trial": "", **(labels or {})},
        # A trial has its line per report; the progress of all trials at once would bury it.
        "quiet": bool(callbacks),
    }
    references = reference_dataset(shards, config.run.seed, deal)
    with checkpoint_on_sigterm(run_dir):
        report = _trained(lambda: _trainer(config, run_dir, given, references, callbacks), folder)
    checkpoint = _last_here(folder, run_dir)
    reached = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return {
        "metrics": report["metrics"],
        **{key: report[key] for key in EXTRA_KEYS},
        # A run that was told to stop goes on after its last evaluation, and its last checkpoint knows how far.
        "step": reached["step"],
        "rejected": reached.get("rejected", {}),  # runs that ended before this was counted lack it
        "measured_at": report["step"],
        "complete": report["step"] >= config.optim.steps,
        "skipped": reached.get("skipped", 0),
        "checkpoint": str(checkpoint),
        "checkpoints": {"at": folder.location, "kept": [asdict(entry) for entry in folder.entries()]},
        "inherited": _inherited(run_dir),
        "data": {"train": config.data.train, "val": config.data.val},
    }


def _trained(make: Callable[[], TorchTrainer], folder: CheckpointFolder) -> dict[str, Any]:
    """What the workers return. A run that has spent its failures gets new ones for every new checkpoint: over days
    many machines fail, and what is to end is only a run that does not get ahead."""
    while True:
        before = [entry.step for entry in folder.entries()]
        try:
            with explained():
                report = make().fit().return_value
            assert report is not None
            return report
        except TrainingFailedError as error:
            if [entry.step for entry in folder.entries()] == before:
                raise
            lost = " ".join(str(error).split())[:200]
            print(f"sam3dist: starts again after many failures, since it got ahead ({lost})", flush=True)


def _trainer(
    config: DistillConfig,
    run_dir: Path,
    given: Mapping[str, Any],
    references: ray.data.Dataset,
    callbacks: Sequence[UserCallback],
) -> TorchTrainer:
    """What runs `train_worker` with what it is given on all workers."""
    return TorchTrainer(
        _train_worker,
        train_loop_config=dict(given),
        datasets={TRAIN: references},
        dataset_config=split_config(),
        scaling_config=scaling(config.strategy),
        torch_config=TorchConfig(backend="nccl" if config.strategy.use_gpu else "gloo"),
        run_config=RunConfig(
            name=RAY,
            storage_path=str(run_dir),
            failure_config=failures(config.strategy),
            callbacks=[GiveUpOnMistakes(), *callbacks],
            worker_runtime_env={"env_vars": worker_environment(config.strategy)},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _inherited(run_dir: Path) -> dict[str, Any] | None:
    """What the student had of its teacher before it trained; None of one that began with nothing."""
    file = run_dir / INHERITED
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    # Imported by the workers alone: the driver of a trial need not spend ten seconds on networks it never builds.
    from cluster.worker import train_worker

    return train_worker(settings)


def require_resumable(config: DistillConfig, run_dir: Path) -> TrainingState | None:
    """The state that the run would go on from, if any; CheckpointError where it was trained with other settings.

    The workers refuse it, too, but only after the directory's config.yaml is that of this run.
    """
    folder = checkpoint_folder(config, run_dir)
    known = folder.entries()
    if not known:
        return None
    # Here, for the sake of fresh trials: their drivers need not spend ten seconds on networks they never build.
    from sam3dist.engine.checkpoint import read_state, require_same_run, require_same_settings

    with tempfile.TemporaryDirectory() as copy:
        latest = known[-1].name
        checkpoint = folder.fetch(latest, Path(copy), ()) if folder.remote else Path(folder.path(latest))
        state = read_state(checkpoint)
        fresh = replace(state, strategy=config.strategy.kind, world_size=config.strategy.num_workers)
        require_same_run(checkpoint, state, fresh)
        require_same_settings(checkpoint, config, finished=state.step >= config.optim.steps)
    return state


def checkpoint_folder(config: DistillConfig, run_dir: Path) -> CheckpointFolder:
    """Where a run keeps its checkpoints."""
    return CheckpointFolder(config.checkpoint.storage_path or run_dir / CHECKPOINTS)


def _last_here(folder: CheckpointFolder, run_dir: Path) -> Path:
    """The last checkpoint on this machine: where it is kept, or, of an object store, a copy of its student.

    With a copy also come the run's curves, which the workers may have written on another machine.
    """
    last = folder.entries()[-1].name
    if not folder.remote:
        return Path(folder.path(last))
    copy = folder.fetch(last, run_dir / CHECKPOINTS / last, (STUDENT,))
    for name in (INHERITED, HISTORY):
        if (copy / name).is_file() and not (run_dir / name).is_file():
            shutil.copyfile(copy / name, run_dir / name)
    return copy


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
    if "://" not in (config.checkpoint.storage_path or ""):
        keys["checkpoint.storage_path"] = config.checkpoint.storage_path
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
    most = strategy.num_workers
    return ScalingConfig(
        num_workers=most if strategy.min_workers is None else (strategy.min_workers, most),
        use_gpu=strategy.use_gpu,
        resources_per_worker={"CPU": strategy.cpus_per_worker, **gpu},
    )


def failures(strategy: StrategyConfig) -> FailureConfig:
    """How often Ray Train tries again: with workers that were lost, and with ones that did not start."""
    most = MOST_START_FAILURES if strategy.min_workers is None else 5 * MOST_START_FAILURES  # each is but a minute
    return FailureConfig(max_failures=strategy.max_failures, controller_failure_limit=most)
