"""A training run under test: started, watched, and compared with one that nothing happened to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3dist.engine.folder import CheckpointFolder
from sam3dist.engine.loggers import read_history
from tests.cluster.conftest import as_words
from tests.faults.nodes import Answer, Nodes, end, until

GONE_ON = re.compile(r"goes on from \S*step-(\d+)")
PATIENCE_S = 600.0


@dataclass
class Job:
    """`python -m cluster.train` on the head of a cluster, or another machine of it, with these settings."""

    cluster: Nodes
    run_dir: Path
    settings: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict)
    on: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.run_dir.with_suffix(".log")

    def start(self) -> None:
        words = as_words({**self.settings, "run.dir": self.run_dir, "run.address": self.cluster.address})
        python = [sys.executable, "-m", "cluster.train", "smoke"]
        self.process = self.cluster.run([*python, *words], self.log, self.on, **self.variables)

    def kill(self) -> None:
        """End the driver at once, with all that it started."""
        assert self.process is not None
        end(self.process)
        self.process.wait(20)

    def step(self) -> int:
        """The last step in its curves."""
        lines = read_history(self.run_dir / "history.jsonl")
        return max((line["step"] for line in lines), default=0)

    def resumed(self) -> list[int]:
        """The steps it has gone on from so far."""
        return [int(step) for step in GONE_ON.findall(self.said())]

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def reach(self, step: int, seconds: float = PATIENCE_S) -> int:
        """Return, with the step, once it has come so far."""
        return self._until(lambda: self.step() >= step and self.step(), seconds)

    def recover(self, since: float, resumed_before: int = 0, seconds: float = PATIENCE_S) -> tuple[float, int]:
        """Seconds from the fault to the first new step after it, and the step from which the run went on."""
        start = self._until(lambda: self.resumed()[resumed_before:], seconds)[-1]
        self._until(lambda: self.step() > start, seconds)
        return time.monotonic() - since, start

    def finish(self, seconds: float = PATIENCE_S) -> dict[str, Any]:
        """What report.json says once the job has ended well."""
        assert self.process is not None
        until(lambda: self.process.poll() is not None, seconds, self.end_of_log)
        assert self.process.returncode == 0, self.end_of_log()
        return json.loads((self.run_dir / "report.json").read_text())

    def checkpoints(self) -> list[int]:
        place = self.settings.get("checkpoint.storage_path", self.run_dir / "checkpoints")
        return [entry.step for entry in CheckpointFolder(place).entries()]

    def end_of_log(self) -> str:
        return self.said()[-6000:]

    def _until(self, done: Callable[[], Answer], seconds: float) -> Answer:
        """The first answer that is not empty; an AssertionError where the job ends without one."""
        assert self.process is not None

        def asked() -> Answer:
            code = self.process.poll()  # before the answer, which a job may give as it ends
            answer = done()
            assert answer or code is None, self.end_of_log()
            return answer

        return until(asked, seconds, self.end_of_log)


def student_of(report: Mapping[str, Any]) -> bytes:
    """The bytes of the weights at the end of a run."""
    return Path(report["checkpoint"], "student", "model.safetensors").read_bytes()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | what happened | seconds to the next step | steps lost |", "|---|---|---|---|"]
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(f"| {row['fault']} | {row['happened']} | {seconds} | {row['lost']} |")
    return "\n".join(lines)
