"""ASHA that remembers: of a search that crashed Tune restores trials and searcher, but not what its scheduler saw."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler


class RememberingAsha(AsyncHyperBandScheduler):
    """Stops trials whose score is below the median (or another share) of those that reached the same step before.

    The scores at its rungs are kept in a file, so that after a crash the trials are still held to those of before.
    """

    def __init__(self, memory: Path, *, steps: int, grace: int, reduction_factor: float) -> None:
        """steps: of a whole trial. grace: steps before a trial can be stopped, fewer than `steps`."""
        super().__init__(
            time_attr="step",
            metric="score",
            mode="max",
            grace_period=grace,
            reduction_factor=reduction_factor,
            # No rung at the last step: a trial that gets there ends by itself, with its last checkpoint written.
            max_t=steps - 1,
            stop_last_trials=False,
        )
        self._memory = memory
        self._recalled = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Recalls the rungs before the first trial of a process."""
        if not self._recalled:
            self._recalled = True
            if self._memory.is_file():
                known = json.loads(self._memory.read_text(encoding="utf-8"))
                for (_, recorded), scores in zip(self.rungs, known, strict=True):
                    recorded.update(scores)
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        before = sum(len(recorded) for _, recorded in self.rungs)
        decision = super().on_trial_result(tune_controller, trial, result)
        if sum(len(recorded) for _, recorded in self.rungs) > before:
            partial = self._memory.with_name(f".{self._memory.name}.partial")
            partial.write_text(json.dumps([recorded for _, recorded in self.rungs]), encoding="utf-8")
            os.replace(partial, self._memory)
        return decision

    @property
    def rungs(self) -> list[tuple[float, dict[str, float]]]:
        """(step, score by trial id), the last rung first."""
        return self._brackets[0]._rungs
