"""What a search tells people: a line per report while it runs, the table and the front when it is over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ray.tune import Callback, ResultGrid
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

from cluster.mistakes import last_line, persons_mistake
from cluster.searcher import TRIAL, VALUES, Refused
from cluster.trainer import EXTRA_KEYS
from sam3dist.objective import hypervolume, pareto_front, reference_size
from sam3dist.wording import duration

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.config.search import SearchConfig
    from sam3dist.models.size import ModelSize


class Narrator(Callback):
    """Prints a line for each report of a trial, with what is left of the search, and for the end of each trial."""

    def __init__(self, quality: str, steps: int, trials: int) -> None:
        """steps: of a trial that is not stopped. trials: how many the search trains."""
        self.quality, self.steps, self.trials = quality, steps, trials
        self.told: dict[str, int] = {}
        self.began: dict[str, tuple[float, int]] = {}  # when, and after which step
        self.trained: dict[str, tuple[float, int]] = {}  # seconds and steps since then

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.began[trial.trial_id] = time.monotonic(), self._reached(trial)
        values = "  ".join(f"{key.rsplit('.')[-1]} {_short(value)}" for key, value in trial.config[VALUES].items())
        self._say(trial, f"starts: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        step = result["step"]
        if self.told.get(trial.trial_id) == step:
            return  # again the last one, with the whole report
        self.told[trial.trial_id] = step
        began, first = self.began[trial.trial_id]
        self.trained[trial.trial_id] = time.monotonic() - began, max(1, step - first)
        left = 0 if result.get("done") else self._seconds_left(trials)
        self._say(
            trial,
            f"step {step}/{self.steps}  {self.quality} {result[self.quality]:.4f}  "
            f"params {result['params_millions']:.3f} M  score {result['score']:.4f}  "
            f"{result['samples_per_second']:.1f} images/s" + (f"  search: {duration(left)} left" if left else ""),
        )

    def _seconds_left(self, trials: list[Trial]) -> float:
        """An estimate: trials to come go as far as those that are over, as fast as so far, as many at a time as now."""
        over = [self._reached(trial) for trial in trials if trial.is_finished()]
        under_way = [self._reached(trial) for trial in trials if not trial.is_finished()]
        far = fmean(over) if over else self.steps
        steps = sum(self.steps - step for step in under_way) + far * (self.trials - len(trials))
        seconds, made = (sum(column) for column in zip(*self.trained.values(), strict=True))
        return steps * seconds / made / max(1, sum(trial.status == Trial.RUNNING for trial in trials))

    def _reached(self, trial: Trial) -> int:
        """The step of its last report, though it may be from before this search was taken up again."""
        return self.told.get(trial.trial_id) or trial.run_metadata.last_result.get("step", 0)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say(trial, _state(trial.last_result, None, self.steps))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        mistake = persons_mistake(trial.get_pickled_error())
        self._say(trial, f"failed: {mistake or 'see its log'}")

    def _say(self, trial: Trial, text: str) -> None:
        print(f"trial {trial.config[TRIAL]}  {text}", flush=True)


def summary(
    results: ResultGrid,
    refused: Sequence[Refused],
    search: SearchConfig,
    base: DistillConfig,
    teacher: ModelSize,
    concurrent: int,
) -> dict[str, Any]:
    """The report's part on the trials. Raises the first error if no trial was done for a mistake or a bug.

    The hypervolume is the area, in quality times decades of size, that the front beats of what a student of the
    teacher's size that finds nothing would offer. concurrent: trials that may run side by side, for `search_times`.
    """
    quality = base.objective.quality
    trials = sorted(_rows(results, refused, search, base.optim.steps), key=lambda row: row["trial"])
    done = [row for row in trials if row["state"] == "done"]
    error = _first_error(results)
    if error is not None and not done:
        raise error
    points = [(row["metrics"][quality], row["size"]) for row in done]
    reference = reference_size(teacher, base.objective)
    chosen = ("trial", "params_millions", "megabytes", "latency_ms", "size", "checkpoint", "score", "config")
    front = [
        {key: row[key] for key in chosen} | {key: row["metrics"][key] for key in ("miou_all", quality)}
        for row in (done[place] for place in pareto_front(points))
    ]
    return {
        "trials": trials,
        "front": front,
        "best": max(done, key=lambda row: row["score"], default=None),
        "hypervolume": hypervolume(points, (0.0, reference), log_size=True),
        "reference_size": reference,
        "reference_millions": teacher.params_millions,
        "objective": base.objective.model_dump(),
        "states": dict(Counter(row["state"] for row in trials)),
        **search_times(trials, concurrent),
        "data": {"train": base.data.train, "val": base.data.val},
    }


def search_times(trials: Iterable[dict[str, Any]], concurrent: int) -> dict[str, float | None]:
    """Goodput, useful and wall seconds of a search; None where no trial has reported.

    Useful are the training steps, as they were last reported, of the trials that are done and of those that ASHA
    stopped, since it compares with both; a trial that failed is lost. The wall time is that from when the first trial
    began until the last one ended, restarts of the search included. The goodput is the share of `concurrent` times
    that: places where no trial ran count as idle.
    """
    told = [row for row in trials if row.get("began")]
    if not told:
        return dict.fromkeys(("goodput", "useful_seconds", "wall_seconds"))
    wall = max(row["began"] + row["wall_seconds"] for row in told) - min(row["began"] for row in told)
    useful = sum(row["useful_seconds"] for row in told if row["state"] != "failed")
    return {"goodput": useful / max(wall * concurrent, 1e-9), "useful_seconds": useful, "wall_seconds": wall}


def _rows(
    results: ResultGrid, refused: Iterable[Refused], search: SearchConfig, steps: int
) -> Iterable[dict[str, Any]]:
    for result in results:
        told = result.metrics or {}
        row: dict[str, Any] = {
            "trial": result.config[TRIAL],
            "state": _state(told, result.error, steps),
            "config": result.config[VALUES],
            "metrics": {key: told[key] for key in told.get("before", {})},
            "checkpoint": told.get(CHECKPOINT_PATH_KEY),
            "seconds": told.get("time_total_s"),
        }
        row |= {key: told.get(key) for key in EXTRA_KEYS}
        if told.get("halved"):
            row["reason"] = "Its memory was full: trained with half the images a batch, and as many an update."
        if result.error:
            row["reason"] = last_line(result.error)
        elif search.max_latency_ms is not None and (row["latency_ms"] or 0) > search.max_latency_ms:
            row["state"] = "refused"
            row["reason"] = f"{row['latency_ms']:.1f} ms are above max_latency_ms={search.max_latency_ms:g}."
        yield row
    for each in refused:
        yield {
            "trial": each.trial,
            "state": "refused",
            "config": each.values,
            "metrics": {},
            "params_millions": None,
            "size": None,
            "reason": each.reason,
        }


def _state(told: dict[str, Any] | None, error: BaseException | None, steps: int) -> str:
    if error is not None:
        return "failed"
    return "done" if (told or {}).get("step", 0) >= steps else "stopped"


def _first_error(results: ResultGrid) -> BaseException | None:
    """Of the trials that failed: a person's mistake, if there is one."""
    errors = [result.error for result in results if result.error is not None]
    return next((mistake for mistake in map(persons_mistake, errors) if mistake), errors[0] if errors else None)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
