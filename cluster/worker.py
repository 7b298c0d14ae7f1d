"""What every worker of a run does: build, resume, train, report. Ray Train calls `train_worker` in each."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import torch
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from torch import nn

from cluster.metrics import Prometheus
from cluster.stopping import preempted, told_to_stop
from cluster.streams import TRAIN, Deal, training_batches
from cluster.taught import shape_source, teaches
from cluster.teachers import Teachers, answered
from cluster.trainer import HISTORY, INHERITED, checkpoint_folder
from sam3dist.answers import imitated_features
from sam3dist.data.batches import calibration_batches, evaluation_batches
from sam3dist.data.segments import Segment, going_on
from sam3dist.data.shards import open_shards
from sam3dist.engine.checkpoint import TrainingState, read_state
from sam3dist.engine.folder import CheckpointFolder
from sam3dist.engine.loggers import make_loggers
from sam3dist.engine.loop import train
from sam3dist.errors import CheckpointError, MemoryFullError
from sam3dist.evaluate import evaluate
from sam3dist.models.segmenter import Pupil, Segmenter, feature_widths
from sam3dist.models.size import model_size
from sam3dist.models.student import blank_student, build_student
from sam3dist.models.teacher import in_precision, load_teacher, teacher_config
from sam3dist.objective import reference_size
from sam3dist.strategies.processes import from_first_rank, own_device, rank_and_size, share_weights, sum_over_ranks
from sam3dist.strategies.protocol import make_strategy
from sam3dist.types import Report

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.teaching.store import AnswerStore


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One worker's run; gives what Ray Train returns as the result of the run: the last report.

    settings: "config", a DistillConfig; "run_dir", which all workers share; "answers", the teacher's AnswerStore or
    None; "teachers", that run elsewhere, or None; "deal", how the references go round; "began", the Unix time at which
    the driver began; "labels" of its metrics, see `Prometheus`; "quiet", to print nothing about its progress. Resumes
    from the newest checkpoint of the run that is whole.
    """
    _hush()
    run_dir = Path(settings["run_dir"])
    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch(run_dir))
        if settings["quiet"]:
            logging.getLogger("sam3dist").setLevel(logging.WARNING)
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
        with memory_explained():
            return asdict(_train(settings, run_dir, scratch))


def _train(settings: dict[str, Any], run_dir: Path, scratch: Path) -> Report:
    config: DistillConfig = settings["config"]
    answers: AnswerStore | None = settings["answers"]
    elsewhere: Teachers | None = settings["teachers"]
    deal: Deal = settings["deal"]
    folder = checkpoint_folder(config, run_dir)
    resume = _newest_whole(folder, scratch)
    logs = {name: run_dir / name for name in (HISTORY, INHERITED)}
    if resume is not None and rank_and_size()[0] == 0:
        _restore_logs(resume, logs)
    device = own_device(config.strategy)
    like, token = config.student.like, config.teacher.geometry_token
    # The student starts from its exact weights.
    base = load_teacher(shape_source(config), device, "fp32", token if like is None else None)
    student = make_student(config, base, run_dir, resume)
    reference = reference_size(model_size(base.net.config), config.objective)
    asked = None
    if answers is None and elsewhere is None and teaches(config):
        teacher = base if like is None else load_teacher(config.teacher.source, device, "fp32", token)
        asked = in_precision(teacher, config.teacher.precision)
    del base  # who learns from labels alone, or from stored answers, needs its memory
    pupil = _pupil(student, config)
    side = max([student.image_size, *(each.image_size for each in (asked, elsewhere) if each)])
    strategy = make_strategy(config, device)
    val = open_shards(_named(config.data.val))

    def measure(module: nn.Module) -> dict[str, float]:
        own = evaluation_batches(
            val,
            config.data,
            student.image_size,
            strategy.rank,
            strategy.world_size,
            max_images=config.eval.max_images,
            images_per_batch=config.eval.images_per_batch,
            prompts_per_batch=config.eval.prompts_per_batch,
        )
        reduce = sum_over_ranks if strategy.world_size > 1 else None
        return evaluate(module, own, config.eval.threshold, device=device, all_reduce=reduce)

    rows = open_shards(_named(config.data.train))
    history = history_of(read_state(resume), resume) if resume else ()
    segments = going_on(history, deal.segment(rows, strategy.world_size, config.data.images_per_batch))
    batches = training_batches(
        ray.train.get_dataset_shard(TRAIN).iter_rows(),
        deal,
        rows,
        config.data,
        side,
        seed=config.run.seed,
        segments=segments,
        rank=strategy.rank,
        answers=answers,
    )
    if elsewhere is not None:
        batches = answered(batches, elsewhere, config, strategy.rank)
    with closing(batches):
        return train(
            config,
            pupil=pupil,
            teacher=asked,
            strategy=strategy,
            batches=batches,
            evaluate=measure,
            publish=publish,
            folder=folder,
            scratch=scratch,
            resume=resume,
            loggers=[*make_loggers(config, run_dir), Prometheus(settings["labels"])] if strategy.rank == 0 else (),
            logs=logs,
            reference=reference,
            epoch_images=rows.rows,
            segments=segments,
            told_to_stop=told_to_stop(run_dir),
            told_to_save=preempted,
            began=settings["began"],
        )


def make_student(config: DistillConfig, base: Segmenter, run_dir: Path, resume: Path | None) -> Segmenter:
    """The student of a fresh run as `student.init` says, the same on every rank; of a resumed one only its shape.

    What a fresh one has of its teacher is written to INHERITED in the run directory.
    """
    if resume is not None:
        return blank_student(config.student, base, config.run.seed)
    shards = open_shards(_named(config.data.train))
    looked_at = calibration_batches(
        shards, config.data, base.image_size, config.student.calibration_images, config.run.seed
    )

    def told(inherited: dict[str, Any]) -> None:
        if rank_and_size()[0] == 0:
            (run_dir / INHERITED).write_text(json.dumps(inherited, indent=1), encoding="utf-8")

    student = build_student(config.student, base, config.run.seed, looked_at, told)
    # What is measured differs in the last digits from GPU to GPU.
    share_weights(student, base.device)
    return student


def history_of(state: TrainingState, checkpoint: Path) -> tuple[Segment, ...]:
    """Which rows a resumed run has seen; CheckpointError where the checkpoint does not say it."""
    if sum(segment.batches for segment in state.segments) != state.batches:
        raise CheckpointError(
            f"{checkpoint}: it does not say which rows its {state.batches} batches were made of; it was written by "
            "another version of sam3dist, or without Ray. To start from its student alone, make a new run."
        )
    return state.segments


def _newest_whole(folder: CheckpointFolder, scratch: Path) -> Path | None:
    """The newest checkpoint that is as it was written, the same on every rank; None where there is none at all.

    A damaged one is told and left alone. CheckpointError where all of them are.
    """
    found = None
    if rank_and_size()[0] == 0:
        known = folder.entries()
        for entry in reversed(known):
            try:
                found = folder.checked(entry.name, scratch)
                break
            except CheckpointError as error:
                print(f"sam3dist: {error} The run goes on from an older checkpoint.", file=sys.stderr, flush=True)
        if known and found is None:
            raise CheckpointError(f"{folder.location}: no checkpoint in it is whole; choose another run.dir.")
    name = from_first_rank(found and found.name)
    if name is None or found is not None:
        return found
    return folder.checked(name, scratch) if folder.remote else Path(folder.path(name))


def _restore_logs(resume: Path, logs: dict[str, Path]) -> None:
    """Put the run's logs where they are written, if this machine has none: the run may have begun on another."""
    for name, file in logs.items():
        if not file.is_file() and (resume / name).is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(resume / name, file)


@contextmanager
def _scratch(run_dir: Path) -> Iterator[Path]:
    """An empty directory of this machine for the worker's part of a checkpoint that goes to an object store.

    It is in the working directory that Ray gives its workers and clears away when the cluster ends. Its name follows
    from run and rank, so that a worker that was killed leaves nothing but to its successor.
    """
    rank = ray.train.get_context().get_world_rank()
    name = hashlib.sha256(str(run_dir).encode()).hexdigest()[:12]
    scratch = Path.cwd() / f"part-{name}-{rank}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def memory_explained() -> Iterator[None]:
    """Inside, a full GPU is a MemoryFullError with the way out: trying again, as Ray would, fills it again."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise MemoryFullError(
            f"{reason}; set optim.gradient_checkpointing=true, lower data.images_per_batch or data.prompts_per_image "
            "and raise optim.accumulate, lower eval.images_per_batch, or set strategy.kind=fsdp with more workers."
        ) from error


def _hush() -> None:
    """Leave out Ray Train's copies of every report; it names that logger after a file, so its own setting misses it."""
    for name in list(logging.root.manager.loggerDict):
        if name.endswith(".py"):
            logging.getLogger(name).setLevel(logging.WARNING)


def publish(report: Report) -> None:
    """Hand an evaluation to Ray Train, and so to Tune. Costs about two seconds a call."""
    ray.train.report(as_metrics(report))


def as_metrics(report: Report) -> dict[str, Any]:
    """The report as Tune takes it: the metrics by their own names beside "step", "score", "params_millions"..."""
    rest = asdict(report)
    rest[CHECKPOINT_PATH_KEY] = rest.pop("checkpoint")
    return {**rest.pop("metrics"), **rest}


def _pupil(student: Segmenter, config: DistillConfig) -> Pupil:
    imitated = imitated_features(config.distillation)
    known = feature_widths(teacher_config(config.teacher.source)) if imitated else {}
    widths = {name: known[name] for name in imitated}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)  # the same projections on every worker
        return Pupil(student, widths)


def _named(folder: str | None) -> str:
    assert folder is not None, "run_training fills in data.train and data.val"
    return folder
