"""The training loop, the same for every strategy, with or without Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sam3dist.answers import decoded, imitable, imitated_features
from sam3dist.data.segments import Segment
from sam3dist.engine.checkpoint import (
    TrainingState,
    architecture_of,
    read_state,
    require_same_run,
    require_same_settings,
    require_training_state,
)
from sam3dist.engine.clock import Clock
from sam3dist.engine.curves import Curves
from sam3dist.engine.folder import TRAINING, CheckpointFolder
from sam3dist.engine.guards import non_finite, poisoned_unless, shield
from sam3dist.engine.loggers import Logger
from sam3dist.engine.optim import learning_rate, make_optimizer, set_learning_rate
from sam3dist.engine.progress import progress
from sam3dist.engine.saving import Saver, Saving
from sam3dist.engine.signals import sigterm_noted
from sam3dist.errors import NonFiniteError
from sam3dist.latency import latency_ms
from sam3dist.losses import distillation_loss
from sam3dist.models.recompute import recompute_layers
from sam3dist.models.segmenter import segment
from sam3dist.models.size import model_size
from sam3dist.objective import reference_size, score, size_of
from sam3dist.strategies.processes import any_of_each, any_rank, counts_of_all_ranks, from_first_rank
from sam3dist.types import LossTerms, PromptBatch, Report, TeacherAnswers

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil, Segmenter
    from sam3dist.strategies.protocol import Strategy

Publish = Callable[[Report], None]
"""Told of every evaluation; one whose student is also saved is told when that is safe."""


def train(
    config: DistillConfig,
    *,
    pupil: Pupil,
    teacher: Segmenter | None,
    strategy: Strategy,
    batches: Iterator[PromptBatch],
    evaluate: Callable[[nn.Module], dict[str, float]],
    publish: Publish,
    folder: CheckpointFolder,
    scratch: Path | None = None,
    resume: Path | None = None,
    loggers: Sequence[Logger] = (),
    logs: Mapping[str, Path] | None = None,
    reference: float | None = None,
    epoch_images: int | None = None,
    segments: tuple[Segment, ...] = (),
    told_to_stop: Callable[[], bool] | None = None,
    told_to_save: Callable[[], bool] | None = None,
    began: float | None = None,
) -> Report:
    """The report of the last evaluation, after `optim.steps` updates, or fewer if it was told to stop.

    Every rank calls this with its own share of the data. batches: endless; when resuming, it starts after the
    `batches` of the checkpoint's state. evaluate: metrics of the module, the same on every rank; called on all
    ranks equally often, first with the untrained student. folder: where checkpoints are kept; scratch: a directory of
    this rank, needed where that is an object store. resume: a checkpoint's directory, of this machine. loggers: used on
    rank 0 only. logs: files that rank 0 adds to every checkpoint, by name.
    teacher: None trains on the answers that the batches have, or, without, on labels alone. reference: the size
    that scores are relative to (`reference_size`), by default of the teacher, else of the student. epoch_images:
    training images of an epoch, only for the curves. segments: how the rows came to the ranks so far, this group of
    ranks at the end; only kept, in the checkpoints. told_to_stop: asked after each step, as SIGTERM is: True on any
    rank ends the run with a checkpoint. told_to_save: True saves one and goes on, once. began: Unix time at which a
    fresh run began, by default now.

    A checkpoint is written while training goes on. One that fails is told and left out.

    Raises NonFiniteError where more than `optim.max_skipped_steps` updates in a row would have brought a NaN into the
    weights, CheckpointError where `resume` does not fit or where nothing can be saved any more.
    """
    run = _Run(config, pupil, teacher, strategy, batches, loggers, reference, epoch_images, segments, began)
    if resume is not None:
        run.restore(resume)
    with run.opened() as sigterm:
        saver = Saver(folder, scratch, pupil, strategy, config, logs)
        if resume is not None:
            run.progress.say(f"goes on from {folder.path(resume.name)}")
        saving = Saving(saver, publish, run.progress.say, newest=folder.path(resume.name) if resume else None)
        if not run.state.before:
            run.measure(evaluate)
        warned_before = False
        with saving.finished_where_all_fail():
            while run.state.step < config.optim.steps:
                run.step()
                step = run.state.step
                last = step == config.optim.steps
                asked = sigterm() or (told_to_stop is not None and told_to_stop())
                warned = told_to_save is not None and told_to_save()
                stopping, hurried, writing = any_of_each((asked, warned, saver.writing), strategy.device)
                if not writing:
                    saving.settle()
                if last or stopping or step % config.run.log_every_steps == 0:
                    run.log_curves()
                measured = last or (step % config.eval.every_steps == 0 and not stopping)
                saved = last or stopping or step % config.checkpoint.every_steps == 0 or (hurried and not warned_before)
                warned_before = warned_before or hurried
                if measured:
                    run.measure(evaluate)
                if last:
                    run.clock.stop()
                if saved or (measured and run.is_best):
                    saving.begin(run.state_to_save(), measured, lasting=last or stopping)
                elif measured:
                    saving.settle()  # reports come in their order
                    publish(replace(run.report(), checkpoint=saving.newest))
                if stopping:
                    break
        saving.settle()
    return replace(run.report(), checkpoint=saving.newest)


class _Run:
    """One rank's side of a run: what `train` was given, and the state that its steps change."""

    def __init__(
        self,
        config: DistillConfig,
        pupil: Pupil,
        teacher: Segmenter | None,
        strategy: Strategy,
        batches: Iterator[PromptBatch],
        loggers: Sequence[Logger],
        reference: float | None,
        epoch_images: int | None,
        segments: tuple[Segment, ...],
        began: float | None,
    ) -> None:
        self.clock = Clock(began=began)
        self.curves = Curves()
        self.rejected = Counter[str]()  # rows missing from this rank's batches since the last checkpoint
        self.config, self.pupil, self.teacher, self.strategy, self.batches = config, pupil, teacher, strategy, batches
        self.loggers = loggers if strategy.rank == 0 else ()
        self.epoch_images = epoch_images
        self.size = model_size(pupil.student.net.config)
        self.latency_ms = from_first_rank(latency_ms(pupil.student)) if config.objective.size == "latency_ms" else None
        if reference is None:
            larger = pupil.student if teacher is None else teacher
            reference = reference_size(model_size(larger.net.config), config.objective)
        self.reference = reference
        self.state = TrainingState(
            seed=config.run.seed,
            strategy=config.strategy.kind,
            precision=strategy.precision,
            world_size=strategy.world_size,
            architecture=architecture_of(pupil),  # while the weights are whole
            segments=segments,
        )
        self.skipped = 0  # updates left out in a row
        if config.optim.gradient_checkpointing:
            recompute_layers(pupil.student)
        self.module, self.optimizer = strategy.setup(pupil, lambda module: make_optimizer(module, config.optim))
        self.module.train()
        if teacher is not None:
            teacher.to(strategy.device).eval().requires_grad_(False)

    def restore(self, checkpoint: Path) -> None:
        """Go on where the checkpoint was written."""
        require_training_state(checkpoint)
        saved = read_state(checkpoint)
        require_same_run(checkpoint, saved, self.state)
        require_same_settings(checkpoint, self.config, finished=saved.step >= self.config.optim.steps)
        self.strategy.load(checkpoint / TRAINING)
        own = {key: getattr(self.state, key) for key in ("strategy", "precision", "world_size", "segments")}
        self.state = replace(saved, **own)
        self.clock = Clock(saved.time, self.clock.began)

    @contextmanager
    def opened(self) -> Iterator[Callable[[], bool]]:
        """Loggers and progress, open inside; gives the question whether SIGTERM has come."""
        with ExitStack() as stack:
            sigterm = stack.enter_context(sigterm_noted())
            self.progress = stack.enter_context(
                progress(self.config.optim.steps, self.state.step, self.strategy.rank, self.config.name)
            )
            for logger in self.loggers:
                logger.start(self.state.step)
                stack.callback(logger.close)
            yield sigterm

    def step(self) -> None:
        """One update, or none where it would bring a NaN into the weights; NonFiniteError after too many of these."""
        config, strategy, number = self.config, self.strategy, self.state.step + 1
        set_learning_rate(self.optimizer, learning_rate(number, config.optim))
        torch.manual_seed(step_seed(config.run.seed, number, strategy.rank))
        with self.clock.wait():
            drawn = [next(self.batches).to(strategy.device) for _ in range(config.optim.accumulate)]
        images = sum(len(batch.image_ids) for batch in drawn) * strategy.world_size
        with self.clock.step(images):
            for batch in drawn:
                terms, finite = self.terms(batch)
                strategy.backward(poisoned_unless(finite, terms.total))
                self.curves.add(terms)
                self.rejected.update(batch.rejected)
            self.norm = strategy.step(config.optim.clip_grad_norm)
            if isfinite(self.norm):
                self.skipped = 0
            elif not strategy.overflowed:
                error = non_finite(number, self.pupil, drawn, self.terms, strategy.backward)
                # With the gradients of that second look: an update after all, if it found nothing.
                self.norm = strategy.step(config.optim.clip_grad_norm)
                if not isfinite(self.norm):
                    self.leave_out(error)
        self.state = self.state.after_step(len(drawn), images, self.epoch_images)
        left = self.clock.seconds_for(config.optim.steps - number)
        self.progress.advance(number, self.clock.images_per_second, left)

    def leave_out(self, error: NonFiniteError) -> None:
        """Go on without this update, unless there were too many of its kind or what it computed stays behind."""
        self.skipped += 1
        spoilt = any(not value.isfinite().all() for value in self.pupil.buffers() if value.is_floating_point())
        if any_rank(spoilt, self.strategy.device) or self.skipped > self.config.optim.max_skipped_steps:
            raise error
        self.state = replace(self.state, skipped=self.state.skipped + 1)
        self.progress.say(f"update left out: {error}")

    def terms(self, batch: PromptBatch) -> tuple[LossTerms, Tensor]:
        """The losses of a batch, and whether all that they were made from is finite."""
        weights = self.config.distillation
        taught = self.taught(batch)
        auxiliary = weights.alpha > 0 and weights.task.auxiliary > 0
        answers, finite = shield(segment(self.module, batch, auxiliary))
        return distillation_loss(answers, batch, taught, weights), finite

    def taught(self, batch: PromptBatch) -> TeacherAnswers | None:
        """What the teacher says of the batch, or has said of it; None where labels alone teach."""
        features = imitated_features(self.config.distillation)
        if isinstance(batch.answers, TeacherAnswers):
            return batch.answers
        if batch.answers is not None:
            return decoded(batch.answers, features)
        if self.teacher is None:
            return None
        with torch.no_grad():
            return imitable(segment(self.teacher, batch), features)

    def measure(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> None:
        """Evaluate, and keep the result as the report of this step."""
        metrics = evaluate(self.module)
        self.module.train()
        size = size_of(self.size, self.config.objective, self.latency_ms)
        report = Report(
            step=self.state.step,
            metrics=metrics,
            params_millions=self.size.params_millions,
            megabytes=self.size.megabytes,
            score=score(metrics, size, self.config.objective, self.reference),
            size=size,
            latency_ms=self.latency_ms,
            before=self.state.before or metrics,
        )
        self.state = self.state.after_evaluation(report)
        self._log("eval", {**metrics, "score": report.score})
        quality = self.config.objective.quality
        self.progress.say(
            f"{quality} {metrics[quality]:.4f} (untrained {report.before[quality]:.4f})  score {report.score:.4f}"
        )

    def log_curves(self) -> None:
        """The mean losses since the last call, and how the run goes."""
        means = self.curves.take(self.strategy.world_size)
        rate = self.optimizer.param_groups[0]["lr"]
        times = self.clock.times()
        pace = {name: times[name] for name in ("goodput", "waiting_share")}
        pace |= {"images_per_second": self.clock.images_per_second, **self.clock.lap()}
        epoch = {} if self.state.epoch is None else {"epoch": self.state.epoch}
        self._log("train", {**means, "learning_rate": rate, "grad_norm": self.norm, **pace, **epoch})
        losses = "  ".join(
            f"{name} {means[f'loss/{name}']:.3f}" for name in ("total", "task", "distillation", "feature")
        )
        self.progress.say(f"{losses}  grad {self.norm:.2f}  lr {rate:.1e}")

    def state_to_save(self) -> TrainingState:
        """The state for a checkpoint, with what the other ranks have counted."""
        rejected = Counter(self.state.rejected) + Counter(counts_of_all_ranks(self.rejected))
        self.state, self.rejected = replace(self.state, rejected=dict(rejected)), Counter()
        return replace(self.state, report=self.report(), time=self.clock.spent())

    @property
    def is_best(self) -> bool:
        """Whether the last evaluation is the best of a student that has trained."""
        return self.state.step > 0 and self.state.best.get("step") == self.state.step

    def report(self) -> Report:
        """The last evaluation, and how fast the run has been so far."""
        report = self.state.report
        assert report is not None
        if self.clock.steps:
            report = replace(report, samples_per_second=self.clock.images_per_second, **self.clock.times())
        return report

    def _log(self, kind: str, values: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log(self.state.step, kind, values)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step's random numbers on one rank, so that a resumed run draws the same without a saved state."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
