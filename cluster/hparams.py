"""Trials in TensorBoard's table of hyperparameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cluster.searcher import TRIAL, VALUES
from sam3dist.knobs import is_number

SHOWN = ("score", "params_millions", "size")


class Hparams(Callback):
    """Adds what a trial was given, and how it ended, to the event files in its directory."""

    def __init__(self, trials: Path) -> None:
        """trials: of the search, with a directory for each."""
        self.trials = trials

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        told = trial.last_result or {}
        names = (*told.get("before", {}), *SHOWN)
        measured = {f"hparam/{name}": told[name] for name in names if is_number(told.get(name))}
        values = {key: _plain(value) for key, value in trial.config[VALUES].items()}
        with SummaryWriter(str(self.trials / trial.config[TRIAL] / "tensorboard")) as writer:
            for summary in hparams(values, measured):
                writer.file_writer.add_summary(summary)
            for name, value in measured.items():
                writer.add_scalar(name, value, told.get("step", 0))


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
