"""The training loop, the same for every strategy, with or without Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sam3dist.answers import decoded, imitable, imitated_features
from sam3dist.engine.checkpoint import (
    TrainingState,
    architecture_of,
    read_state,
    require_same_run,
    require_same_settings,
    write_checkpoint,
)
from sam3dist.engine.clock import Clock
from sam3dist.engine.curves import Curves
from sam3dist.engine.guards import non_finite, poisoned_unless, shield
from sam3dist.engine.loggers import Logger
from sam3dist.engine.optim import learning_rate, make_optimizer, set_learning_rate
from sam3dist.engine.progress import progress
from sam3dist.engine.signals import sigterm_noted
from sam3dist.losses import distillation_loss
from sam3dist.models.recompute import recompute_layers
from sam3dist.models.segmenter import segment
from sam3dist.models.size import model_size
from sam3dist.objective import score
from sam3dist.strategies.processes import any_rank, counts_of_all_ranks
from sam3dist.types import LossTerms, PromptBatch, Report, TeacherAnswers

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil, Segmenter
    from sam3dist.strategies.protocol import Strategy

Publish = Callable[[Report, Path | None], None]
"""Told of every evaluation and checkpoint; gets this rank's directory of the checkpoint where there is a new one."""


def train(
    config: DistillConfig,
    *,
    pupil: Pupil,
    teacher: Segmenter | None,
    strategy: Strategy,
    batches: Iterator[PromptBatch],
    evaluate: Callable[[nn.Module], dict[str, float]],
    publish: Publish,
    directory: Path,
    resume: Path | None = None,
    loggers: Sequence[Logger] = (),
    reference_millions: float | None = None,
    epoch_images: int | None = None,
    told_to_stop: Callable[[], bool] | None = None,
) -> Report:
    """The report of the last evaluation, after `optim.steps` updates, or fewer if it was told to stop.

    Every rank calls this with its own share of the data. batches: endless; when resuming, it starts after the
    `batches` of the checkpoint's state. evaluate: metrics of the module, the same on every rank; called on all
    ranks equally often, first with the untrained student. directory: where checkpoints are written, shared by the
    ranks or one for each. resume: a checkpoint directory with the files of all ranks. loggers: used on rank 0 only.
    teacher: None trains on the answers that the batches have, or, without, on labels alone. reference_millions: the
    size that scores are relative to, by default the teacher's, else the student's own. epoch_images: training images
    of an epoch, only for the curves. told_to_stop: asked after each step, as SIGTERM is: True on any rank ends the
    run with a checkpoint.

    Raises NonFiniteError before a NaN reaches the weights, CheckpointError where `resume` does not fit.
    """
    run = _Run(config, pupil, teacher, strategy, batches, loggers, reference_millions, epoch_images)
    if resume is not None:
        run.restore(resume)
    with run.opened() as sigterm:
        if not run.state.before:
            run.measure(evaluate)
        while run.state.step < config.optim.steps:
            run.step()
            step = run.state.step
            last = step == config.optim.steps
            stopping = any_rank(sigterm() or (told_to_stop is not None and told_to_stop()), strategy.device)
            if last or stopping or step % config.run.log_every_steps == 0:
                run.log_curves()
            measured = last or (step % config.eval.every_steps == 0 and not stopping)
            saved = last or stopping or step % config.checkpoint.every_steps == 0
            if measured:
                run.measure(evaluate)
            written = run.save(directory) if saved else None
            if measured or saved:
                publish(run.report(), written)
            if stopping:
                break
    return run.report()


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
        reference_millions: float | None,
        epoch_images: int | None,
    ) -> None:
        self.clock = Clock()
        self.curves = Curves()
        self.rejected = Counter[str]()  # rows missing from this rank's batches since the last checkpoint
        self.config, self.pupil, self.teacher, self.strategy, self.batches = config, pupil, teacher, strategy, batches
        self.loggers = loggers if strategy.rank == 0 else ()
        self.epoch_images = epoch_images
        self.size = model_size(pupil.student.net.config)
        if reference_millions is None:
            larger = pupil.student if teacher is None else teacher
            reference_millions = model_size(larger.net.config).params_millions
        self.reference_millions = reference_millions
        self.state = TrainingState(
            seed=config.run.seed,
            strategy=config.strategy.kind,
            precision=strategy.precision,
            world_size=strategy.world_size,
            architecture=architecture_of(pupil),  # while the weights are whole
        )
        self.checkpoint: Path | None = None
        if config.optim.gradient_checkpointing:
            recompute_layers(pupil.student)
        self.module, self.optimizer = strategy.setup(pupil, lambda module: make_optimizer(module, config.optim))
        self.module.train()
        if teacher is not None:
            teacher.to(strategy.device).eval().requires_grad_(False)

    def restore(self, checkpoint: Path) -> None:
        """Go on where the checkpoint was written."""
        saved = read_state(checkpoint)
        require_same_run(checkpoint, saved, self.state)
        require_same_settings(checkpoint, self.config, finished=saved.step >= self.config.optim.steps)
        self.strategy.load(checkpoint / "training")
        self.state = replace(
            saved, **{key: getattr(self.state, key) for key in ("strategy", "precision", "world_size")}
        )
        self.checkpoint = checkpoint

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
        """One update. Raises NonFiniteError instead of making it with a NaN."""
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
            if not isfinite(self.norm) and not strategy.overflowed:
                raise non_finite(number, self.pupil, drawn, self.terms, strategy.backward)
        self.state = self.state.after_step(len(drawn), images, self.epoch_images)
        left = self.clock.seconds_for(config.optim.steps - number)
        self.progress.advance(number, self.clock.images_per_second, left)

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
        report = Report(
            step=self.state.step,
            metrics=metrics,
            params_millions=self.size.params_millions,
            megabytes=self.size.megabytes,
            score=score(metrics, self.size.params_millions, self.config.objective, self.reference_millions),
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
        pace = {"images_per_second": self.clock.images_per_second, "goodput": self.clock.goodput}
        epoch = {} if self.state.epoch is None else {"epoch": self.state.epoch}
        self._log("train", {**means, "learning_rate": rate, "grad_norm": self.norm, **pace, **epoch})
        losses = "  ".join(
            f"{name} {means[f'loss/{name}']:.3f}" for name in ("total", "task", "distillation", "feature")
        )
        self.progress.say(f"{losses}  grad {self.norm:.2f}  lr {rate:.1e}")

    def save(self, directory: Path) -> Path | None:
        """This rank's directory of a new checkpoint, or None where other ranks write it."""
        rejected = Counter(self.state.rejected) + Counter(counts_of_all_ranks(self.rejected))
        self.state, self.rejected = replace(self.state, rejected=dict(rejected)), Counter()
        written = write_checkpoint(
            directory,
            replace(self.state, report=self.report()),
            pupil=self.pupil,
            strategy=self.strategy,
            config=self.config,
            keep=self.config.checkpoint.keep,
        )
        self.checkpoint = written
        return written

    def report(self) -> Report:
        """The last evaluation, with the newest checkpoint and how fast the run has been so far."""
        report = self.state.report
        assert report is not None
        if self.clock.steps:
            report = replace(report, samples_per_second=self.clock.images_per_second, goodput=self.clock.goodput)
        return replace(report, checkpoint=None if self.checkpoint is None else str(self.checkpoint))

    def _log(self, kind: str, values: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log(self.state.step, kind, values)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step's random numbers on one rank, so that a resumed run draws the same without a saved state."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
