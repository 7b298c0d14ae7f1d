"""What every worker of a run does: build, resume, train, report. Ray Train calls `train_worker` in each."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import torch
from torch import nn

from cluster.metrics import Prometheus
from cluster.stopping import STOP
from cluster.streams import TRAIN, training_batches
from cluster.taught import shape_source, teaches
from cluster.trainer import INHERITED
from sam3dist.answers import imitated_features
from sam3dist.data.batches import calibration_batches, evaluation_batches
from sam3dist.data.shards import open_shards
from sam3dist.engine.checkpoint import TrainingState, read_state
from sam3dist.engine.loggers import make_loggers
from sam3dist.engine.loop import train
from sam3dist.errors import ResourceError
from sam3dist.evaluate import evaluate
from sam3dist.models.segmenter import Pupil, Segmenter, feature_widths
from sam3dist.models.size import model_size
from sam3dist.models.student import blank_student, build_student
from sam3dist.models.teacher import in_precision, load_teacher, teacher_config
from sam3dist.strategies.processes import own_device, rank_and_size, share_weights, sum_over_ranks
from sam3dist.strategies.protocol import make_strategy
from sam3dist.types import Report

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.teaching.store import AnswerStore


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One worker's run; gives what Ray Train returns as the result of the run: the last report.

    settings: "config", a DistillConfig; "run_dir", which all workers share; "answers", the teacher's AnswerStore or
    None; "began", the Unix time at which the driver began; "labels" of its metrics, see `Prometheus`; "quiet", to print
    nothing about its progress. Resumes from the checkpoint that Ray Train holds for this run.
    """
    _hush()
    run_dir = Path(settings["run_dir"])
    held = ray.train.get_checkpoint()
    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch(run_dir))
        resume = Path(stack.enter_context(held.as_directory())) if held else None
        if settings["quiet"]:
            logging.getLogger("sam3dist").setLevel(logging.WARNING)
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
        with memory_explained():
            return asdict(_train(settings, run_dir, scratch, resume))


def _train(settings: dict[str, Any], run_dir: Path, scratch: Path, resume: Path | None) -> Report:
    config: DistillConfig = settings["config"]
    answers: AnswerStore | None = settings["answers"]
    device = own_device(config.strategy)
    like, token = config.student.like, config.teacher.geometry_token
    # The student starts from its exact weights.
    base = load_teacher(shape_source(config), device, "fp32", token if like is None else None)
    student = make_student(config, base, run_dir, resume)
    reference_millions = model_size(base.net.config).params_millions
    asked = None
    if answers is None and teaches(config):
        teacher = base if like is None else load_teacher(config.teacher.source, device, "fp32", token)
        asked = in_precision(teacher, config.teacher.precision)
    del base  # who learns from labels alone, or from stored answers, needs its memory
    pupil = _pupil(student, config)
    side = max(student.image_size, asked.image_size) if asked else student.image_size
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

    references = ray.train.get_dataset_shard(TRAIN).iter_rows()
    seen = batches_seen(read_state(resume), config) if resume else 0
    batches = training_batches(references, config.data, side, seed=config.run.seed, skip_batches=seen, answers=answers)
    with closing(batches):
        return train(
            config,
            pupil=pupil,
            teacher=asked,
            strategy=strategy,
            batches=batches,
            evaluate=measure,
            publish=publish,
            directory=scratch,
            resume=resume,
            loggers=[*make_loggers(config, run_dir), Prometheus(settings["labels"])] if strategy.rank == 0 else (),
            reference_millions=reference_millions,
            epoch_images=open_shards(_named(config.data.train)).rows,
            told_to_stop=_stop_file(run_dir),
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


def batches_seen(state: TrainingState, config: DistillConfig) -> int:
    """How many batches each worker of a resumed run leaves out.

    With the number of workers as it was, those it has drawn. With another number rows are shared out anew: then as
    many as make the same number of images, so that the run goes on in the right epoch, though not with the very
    rows that were left in it.
    """
    if state.world_size == config.strategy.num_workers:
        return state.batches
    return state.images // (config.data.images_per_batch * config.strategy.num_workers)


@contextmanager
def _scratch(run_dir: Path) -> Iterator[Path]:
    """An empty directory of this machine for the worker's part of a checkpoint, which Ray Train then carries off.

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
    """Inside, a full GPU is a ResourceError with the way out: trying again, as Ray would, fills it again."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise ResourceError(
            f"{reason}; set optim.gradient_checkpointing=true, lower data.images_per_batch or data.prompts_per_image "
            "and raise optim.accumulate, lower eval.images_per_batch, or set strategy.kind=fsdp with more workers."
        ) from error


def _hush() -> None:
    """Leave out Ray Train's copies of every report; it names that logger after a file, so its own setting misses it."""
    for name in list(logging.root.manager.loggerDict):
        if name.endswith(".py"):
            logging.getLogger(name).setLevel(logging.WARNING)


def publish(report: Report, checkpoint: Path | None) -> None:
    """Hand an evaluation, and this worker's part of a checkpoint, to Ray Train. Costs about two seconds a call."""
    held = ray.train.Checkpoint.from_directory(checkpoint) if checkpoint else None
    # What Ray has carried off is deleted here: with the optimizer's state it is three times the size of the weights.
    ray.train.report(as_metrics(report), checkpoint=held, delete_local_checkpoint_after_upload=True)


def as_metrics(report: Report) -> dict[str, Any]:
    """The report as Tune takes it: the metrics by their own names beside "step", "score", "params_millions"..."""
    rest = asdict(report)
    del rest["checkpoint"]  # a worker's part of it, soon gone; Ray's link to Tune adds "checkpoint_path"
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


def _stop_file(run_dir: Path) -> Callable[[], bool]:
    return (run_dir / STOP).exists
