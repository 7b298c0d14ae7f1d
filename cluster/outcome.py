"""What a search tells people: a line per report while it runs, the table and the front when it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune import Callback, ResultGrid
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

from cluster.mistakes import persons_mistake
from cluster.searcher import TRIAL, VALUES, Refused
from sam3dist.objective import hypervolume, pareto_front

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig


class Narrator(Callback):
    """Prints a line for each report of a trial, and for the end of each trial."""

    def __init__(self, quality: str, steps: int) -> None:
        self.quality, self.steps = quality, steps
        self.told: dict[str, int] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        values = "  ".join(f"{key.rsplit('.')[-1]} {_short(value)}" for key, value in trial.config[VALUES].items())
        self._say(trial, f"starts: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if self.told.get(trial.trial_id) == result["step"]:
            return  # again the last one, with the whole report
        self.told[trial.trial_id] = result["step"]
        self._say(
            trial,
            f"step {result['step']}/{self.steps}  {self.quality} {result[self.quality]:.4f}  "
            f"params {result['params_millions']:.3f} M  score {result['score']:.4f}",
        )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._say(trial, _state(trial.last_result, None, self.steps))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        mistake = persons_mistake(trial.get_pickled_error())
        self._say(trial, f"failed: {mistake or 'see its log'}")

    def _say(self, trial: Trial, text: str) -> None:
        print(f"trial {trial.config[TRIAL]}  {text}", flush=True)


def summary(
    results: ResultGrid, refused: Sequence[Refused], base: DistillConfig, reference_millions: float
) -> dict[str, Any]:
    """The report's part on the trials. Raises the first error if no trial was done.

    The hypervolume is the area, in quality times decades of size, that the front beats of what a student of the
    teacher's size that finds nothing would offer.
    """
    quality = base.objective.quality
    trials = sorted(_rows(results, refused, base.optim.steps), key=lambda row: row["trial"])
    done = [row for row in trials if row["state"] == "done"]
    if not done:
        raise _why_none(results)
    points = [(row["metrics"][quality], row["params_millions"]) for row in done]
    chosen = ("trial", "params_millions", "megabytes", "checkpoint", "score", "config")
    front = [
        {key: row[key] for key in chosen} | {key: row["metrics"][key] for key in ("miou_all", quality)}
        for row in (done[place] for place in pareto_front(points))
    ]
    return {
        "trials": trials,
        "front": front,
        "best": max(done, key=lambda row: row["score"]),
        "hypervolume": hypervolume(points, (0.0, reference_millions), log_size=True),
        "reference_millions": reference_millions,
        "objective": base.objective.model_dump(),
        "states": dict(Counter(row["state"] for row in trials)),
        "data": {"train": base.data.train, "val": base.data.val},
    }


def _rows(results: ResultGrid, refused: Iterable[Refused], steps: int) -> Iterable[dict[str, Any]]:
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
        kept = ("before", "params_millions", "megabytes", "score", "step", "samples_per_second", "goodput")
        row |= {key: told.get(key) for key in kept}
        if result.error:
            row["reason"] = str(persons_mistake(result.error) or result.error).strip().splitlines()[-1]
        yield row
    for each in refused:
        yield {
            "trial": each.trial,
            "state": "refused",
            "config": each.values,
            "metrics": {},
            "params_millions": None,
            "reason": each.reason,
        }


def _state(told: dict[str, Any] | None, error: BaseException | None, steps: int) -> str:
    if error is not None:
        return "failed"
    return "done" if (told or {}).get("step", 0) >= steps else "stopped"


def _why_none(results: ResultGrid) -> BaseException:
    errors = [result.error for result in results if result.error is not None]
    for error in errors:
        mistake = persons_mistake(error)
        if mistake is not None:
            return mistake
    return errors[0] if errors else RuntimeError("no trial trained to its last step, and none failed")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
