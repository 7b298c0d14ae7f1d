"""One trial of a search: a training run of its own, and what becomes of it where it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback

from cluster.trainer import fit
from sam3dist.config.load import with_overrides
from sam3dist.engine.folder import below
from sam3dist.errors import ConfigError, MemoryFullError, Sam3DistError

if TYPE_CHECKING:
    from cluster.teachers import Teachers
    from sam3dist.config.distill import DistillConfig
    from sam3dist.teaching.store import AnswerStore

MISTAKE = "mistake.txt"
"""In a trial's directory: why trying it again would be in vain."""
MOST_FAILURES = 2
"""Times that a run whose driver is lost, as with its machine, is taken up again at its last checkpoint."""
HALVED = "half_batch.txt"
"""In a trial's directory, once its memory was full: it trains with half the images at a time."""


@dataclass(frozen=True)
class TrialRun:
    """What all trials of a search have in common, as Tune hands it to the driver of each."""

    base: DistillConfig
    name: str
    """Of the search."""
    answers: AnswerStore | None
    asked: Teachers | None

    def run(self, directory: Path, number: str, values: Mapping[str, Any]) -> None:
        """Train with these values, or go on in the directory; report to Tune.

        A trial whose memory is full starts again with half the images a batch, and twice as many batches an update, so
        that it still learns from as many. Other mistakes of a person are kept: Tune would try in vain.
        """
        mistake, halved = directory / MISTAKE, directory / HALVED
        if mistake.is_file():
            raise ConfigError(mistake.read_text(encoding="utf-8"))
        config = with_overrides(self.base, {**values, "name": f"{self.name}-{number}"})
        labels = {"run": self.name, "trial": number}
        try:
            report = with_half_where_full(
                halved,
                config,
                lambda now: fit(
                    now, directory, self.answers, self.asked, callbacks=[TuneReportCallback()], labels=labels
                ),
            )
        except Sam3DistError as error:
            directory.mkdir(parents=True, exist_ok=True)
            mistake.write_text(str(error), encoding="utf-8")
            raise
        # Once more, since Tune may have missed the last one: a trial taken up again after its end reports nothing new.
        metrics, checkpoint = report.pop("metrics"), report.pop("checkpoint")
        tune.report({**metrics, **report, CHECKPOINT_PATH_KEY: checkpoint, "halved": halved.is_file()})


def taken_up(state: Path, runs: Path, trainable: Any) -> tune.Tuner | None:
    """What Tune was doing when a crash cut it short, by its state; None where it had not begun.

    runs: the parent of the run directories, whose mistakes are forgotten: whoever starts again has mended something.
    """
    for mistake in runs.glob(f"*/{MISTAKE}"):
        mistake.unlink()
    if not (tune.Tuner.can_restore(str(state)) and any(state.glob("experiment_state-*.json"))):
        return None
    return tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True, resume_errored=True)


def with_half_where_full(
    halved: Path, config: DistillConfig, train: Callable[[DistillConfig], dict[str, Any]]
) -> dict[str, Any]:
    """What `train` gives for the run, or for half the batch where the memory was full now or, by this file, before."""
    if halved.is_file():
        return train(half_batches(config))
    try:
        return train(config)
    except MemoryFullError as error:
        if config.data.images_per_batch == 1:
            raise
        halved.parent.mkdir(parents=True, exist_ok=True)
        halved.write_text(str(error), encoding="utf-8")
        print(f"{config.name}: its memory was full; again with half the images a batch", flush=True)
        return train(half_batches(config))


def half_batches(config: DistillConfig) -> DistillConfig:
    """The same run with half the images at a time, and updates of as many images as before, or one fewer."""
    images, accumulate = config.data.images_per_batch, config.optim.accumulate
    return with_overrides(config, {"data.images_per_batch": images // 2, "optim.accumulate": 2 * accumulate})


def own_storage(base: DistillConfig, *names: str) -> dict[str, str]:
    """Overrides that give a run a place of its own where its search keeps checkpoints."""
    shared = base.checkpoint.storage_path
    return {} if shared is None else {"checkpoint.storage_path": below(shared, *names)}
