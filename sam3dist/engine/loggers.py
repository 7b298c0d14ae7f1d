"""Where the numbers of a run go: always history.jsonl, and the trackers of `run.loggers`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sam3dist.engine.checkpoint import as_plain, json_safe
from sam3dist.errors import ConfigError

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Logger(Protocol):
    """One place for numbers. Used on rank 0 only."""

    def start(self, step: int) -> None:
        """Open it; the run goes on after this step, so what was logged of later ones counts no more."""
        ...

    def log(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Note these values of a step; kind is "train" or "eval"."""
        ...

    def close(self) -> None:
        """Write out what is still held back."""
        ...


def make_loggers(config: DistillConfig, run_dir: Path) -> list[Logger]:
    """history.jsonl and a logger for each name in `run.loggers`, all writing below the run directory.

    ConfigError at once if a package is missing; nothing is opened before `start`.
    """
    for name in config.run.loggers:
        if find_spec(PACKAGES[name]) is None:
            package = "mlflow-skinny" if name == "mlflow" else PACKAGES[name]
            raise ConfigError(f"run.loggers: {name} is not installed; pip install {package}, or leave {name} out.")
    kinds: dict[str, Callable[[DistillConfig, Path], Logger]] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "mlflow": Mlflow,
    }
    return [History(run_dir), *(kinds[name](config, run_dir) for name in config.run.loggers)]


class History:
    """history.jsonl: one JSON object a line, {"step", "kind", value names...}; null for what is not a finite number."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "history.jsonl"
        self.file: TextIO | None = None

    def start(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_history(self.path) if line["step"] <= step] if step else []
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8", buffering=1)  # a line at a time, for those who follow it

    def log(self, step: int, kind: str, values: dict[str, float]) -> None:
        assert self.file is not None
        self.file.write(json.dumps({"step": step, "kind": kind, **json_safe(values)}) + "\n")

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a history.jsonl; a last one that a crash cut short is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class TensorBoard:
    """Event files in tensorboard/."""

    def __init__(self, config: DistillConfig, run_dir: Path) -> None:
        self.directory = run_dir / "tensorboard"

    def start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.directory), purge_step=step + 1 if step else None)

    def log(self, step: int, kind: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Weights & Biases; with WANDB_MODE=offline it needs no account and keeps everything in wandb/."""

    def __init__(self, config: DistillConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir

    def start(self, step: int) -> None:
        import wandb

        known = self.run_dir / "wandb.id"
        self.run = wandb.init(
            project="sam3dist",
            name=self.config.name,
            id=known.read_text() if step and known.is_file() else None,
            resume="allow",
            dir=str(self.run_dir),
            config=as_plain(self.config),
        )
        known.write_text(self.run.id)

    def log(self, step: int, kind: str, values: dict[str, float]) -> None:
        self.run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """MLflow; without MLFLOW_TRACKING_URI it writes to mlflow.db in the run directory."""

    def __init__(self, config: DistillConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir

    def start(self, step: int) -> None:
        import mlflow

        self.mlflow: Any = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{self.run_dir.resolve()}/mlflow.db")
        mlflow.set_experiment("sam3dist")
        known = self.run_dir / "mlflow.id"
        if step and known.is_file():
            mlflow.start_run(run_id=known.read_text())
        else:
            known.write_text(mlflow.start_run(run_name=self.config.name).info.run_id)

    def log(self, step: int, kind: str, values: dict[str, float]) -> None:
        self.mlflow.log_metrics({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()
