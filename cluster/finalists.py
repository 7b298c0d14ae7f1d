"""The best of a front trained anew: over several seeds, which tells luck from quality, and for as long as it takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import ResultGrid
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.tune.search import Searcher

from cluster import preflight
from cluster.mistakes import last_line
from cluster.outcome import Narrator
from cluster.searcher import TRIAL, VALUES
from cluster.trial import MOST_FAILURES, TrialRun, own_storage, taken_up

if TYPE_CHECKING:
    from sam3dist.config.search import SearchConfig

FINALISTS, STATE = "finalists", "tune-finalists"
"""In a search's directory: a run directory for each student and seed, and Tune's state of them."""
JOBS = "jobs.json"


class InTurn(Searcher):
    """Suggests what is on a list, one after the other."""

    def __init__(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.jobs, self.begun = list(jobs), 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next one on the list."""
        if self.begun == len(self.jobs):
            return Searcher.FINISHED
        self.begun += 1
        return dict(self.jobs[self.begun - 1])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps(self.begun), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        self.begun = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))


def train_finalists(
    search: SearchConfig, trial: TrialRun, run_dir: Path, front: Sequence[Mapping[str, Any]], at_once: int
) -> list[dict[str, Any]]:
    """The `finalists` of report.json: of each student its trial, quality over the seeds, and a run per seed.

    The best of the front by score, as many as `finalists.count`, each with `finalists.seeds` seeds for
    `finalists.steps` updates. Called again after a crash it goes on. A run that fails is listed with its reason.
    """
    chosen = sorted(front, key=lambda point: -point["score"])[: search.finalists.count]
    if not chosen:
        return []
    steps = search.finalists.steps or trial.base.optim.steps
    first = trial.base.run.seed
    jobs = [
        {TRIAL: f"{point['trial']}-seed{seed}", VALUES: {**point["config"], "optim.steps": steps, "run.seed": seed}}
        for seed in range(first, first + search.finalists.seeds)
        for point in chosen
    ]
    print(f"{len(chosen)} students of the front train anew: {len(jobs)} runs of {steps} steps", flush=True)
    results = _tuner(trial, run_dir, jobs, steps, at_once).fit()
    return [_told(point, results, trial.base.objective.quality, run_dir) for point in chosen]


def _tuner(trial: TrialRun, run_dir: Path, jobs: Sequence[Mapping[str, Any]], steps: int, at_once: int) -> tune.Tuner:
    """These jobs as Tune runs them: as they were when a crash cut them short, else all of them."""
    trainable = tune.with_resources(_trainable(trial, run_dir), {"CPU": preflight.TRIAL_CPUS})
    state, known = run_dir / STATE, run_dir / FINALISTS / JOBS
    same = known.is_file() and json.loads(known.read_text(encoding="utf-8")) == jobs
    if not same:
        shutil.rmtree(state, ignore_errors=True)
    before = taken_up(state, run_dir / FINALISTS, trainable)
    if before is not None:
        return before
    shutil.rmtree(state, ignore_errors=True)
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps(jobs), encoding="utf-8")
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(num_samples=len(jobs), max_concurrent_trials=at_once, search_alg=InTurn(jobs)),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=str(run_dir),
            failure_config=tune.FailureConfig(max_failures=MOST_FAILURES),
            callbacks=[Narrator(trial.base.objective.quality, steps, len(jobs))],
            verbose=0,
        ),
    )


def _trainable(trial: TrialRun, run_dir: Path) -> Callable[[dict[str, Any]], None]:
    def run(job: dict[str, Any]) -> None:
        own = own_storage(trial.base, FINALISTS, job[TRIAL])
        trial.run(run_dir / FINALISTS / job[TRIAL], job[TRIAL], {**job[VALUES], **own})

    return run


def _told(point: Mapping[str, Any], results: ResultGrid, quality: str, run_dir: Path) -> dict[str, Any]:
    runs = []
    for result in results:
        assert result.config is not None
        name = result.config[TRIAL]
        if not name.startswith(f"{point['trial']}-seed"):
            continue
        told = result.metrics or {}
        row = {"seed": result.config[VALUES]["run.seed"], "run_dir": str(run_dir / FINALISTS / name)}
        if result.error is None:
            metrics = {key: told[key] for key in told["before"]}
            row |= {"metrics": metrics, "score": told["score"], "checkpoint": told[CHECKPOINT_PATH_KEY]}
        else:
            row["reason"] = last_line(result.error)
        runs.append(row)
    measured = [row["metrics"][quality] for row in runs if "metrics" in row]
    return {
        "trial": point["trial"],
        "params_millions": point["params_millions"],
        "megabytes": point["megabytes"],
        "of_the_search": point[quality],
        "mean": fmean(measured) if measured else None,
        "std": stdev(measured) if len(measured) > 1 else None,
        "runs": sorted(runs, key=lambda row: row["seed"]),
    }
