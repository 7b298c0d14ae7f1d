"""SearchConfig -> many runs side by side, and the front they make together.

Each trial is a run of Ray Train of its own, with as many workers as the base run has; Ray Train places them. Tune holds
one tiny driver per trial, asks the searcher what to try, and stops what falls behind.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from cluster import preflight
from cluster.finalists import train_finalists
from cluster.halving import RememberingAsha
from cluster.hparams import Hparams
from cluster.mirror import Mirror, restore
from cluster.outcome import Narrator, summary
from cluster.searcher import TRIAL, VALUES, JointSearch, Refusal, begin_study, refused_trials, require_some_shape
from cluster.session import session
from cluster.taught import shape_source, stored_answers
from cluster.teachers import teachers
from cluster.trainer import checkpoint_folder, located
from cluster.trial import MOST_FAILURES, TrialRun, own_storage, taken_up
from sam3dist.config.load import to_yaml, with_overrides
from sam3dist.config.overrides import build
from sam3dist.config.plain import read_yaml
from sam3dist.config.search import FinalistsConfig, SearchConfig
from sam3dist.engine.folder import TRAINING
from sam3dist.errors import ConfigError
from sam3dist.models.size import model_size
from sam3dist.models.teacher import teacher_config

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

TRIALS, TUNE, CONFIG, BASE = "trials", "tune", "search.yaml", "config.yaml"
"""In the run directory: a run directory per trial, Tune's state, the search, and the run every trial starts from."""
JOURNAL, RUNGS = "optuna.journal", "rungs.json"
"""Optuna's study, which `optuna-dashboard` shows, and the scores ASHA compares with."""


def run_search(search: SearchConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """What report.json says of a search: trials, front, best, hypervolume, and how many trials ended in which state.

    The states: "done", "stopped" (by ASHA), "failed", and "refused" (such a student cannot be built or is above
    `max_params_millions`; it takes no trial's place). The front holds done trials only. The same directory again
    goes on after a crash: finished trials are kept, the others resume at their last checkpoint. In the end every
    trial has its student, and those on the front also what training on would need. Connects to a cluster (`session`)
    unless the process is connected. By default it writes to `run.dir`, else runs/tune-NAME.

    Raises ResourceError and ConfigError before anything trains, and the first trial's error if no trial was done.
    """
    base = search.base()
    run_dir = (run_dir or Path(base.run.dir or f"runs/tune-{search.name}")).resolve()
    stored = None if base.checkpoint.storage_path is None else checkpoint_folder(base, run_dir)
    if stored is not None and not (run_dir / CONFIG).is_file() and restore(run_dir, stored):
        print(f"the search in {stored.location} goes on in {run_dir}", flush=True)
    _require_same_search(search, run_dir)
    base = located(base, run_dir)
    teacher = teacher_config(shape_source(base))
    refuse = Refusal(base, teacher, search.max_params_millions, search.max_megabytes)
    require_some_shape(search, refuse)
    answers = stored_answers(base, weighs_features(search, base))
    with session(base.run, elastic=base.strategy.min_workers is not None):
        preflight.check_state_api()
        wanted = min(search.max_concurrent or search.trials, search.trials)
        at_once = preflight.room_for_trials(
            base.strategy, wanted, base.teacher.workers, wait_s=base.run.wait_for_nodes_s
        )
        if at_once < (search.max_concurrent or 0):
            print(f"max_concurrent={search.max_concurrent}: the cluster holds {at_once} trials at once", flush=True)
        cpus, groups = preflight.free_cpus(), preflight.held_placement_groups()
        with teachers(base) as asked:
            trial = TrialRun(base, search.name, answers, asked)
            results = _tuner(search, trial, run_dir, refuse, at_once).fit()
            refused = refused_trials(search, run_dir / JOURNAL)
            found = summary(results, refused, search, base, model_size(teacher), at_once)
            found["finalists"] = train_finalists(search, trial, run_dir, found["front"], at_once)
        lost = preflight.wait_until_free(cpus, groups)
        if lost:  # no error: on a shared cluster others may have taken them, and what was found is not to be lost
            said = "if no other job has taken them, restart the cluster"
            print(f"sam3dist: the trials are over, but {lost}; {said}.", file=sys.stderr, flush=True)
    tidy(base, run_dir, {point["trial"] for point in found["front"]})
    return found


def _tuner(search: SearchConfig, trial: TrialRun, run_dir: Path, refuse: Refusal, at_once: int) -> tune.Tuner:
    """The search as Tune runs it: as it was when a crash cut it short, else a fresh one."""
    base = trial.base
    trainable = tune.with_resources(_trainable(trial, run_dir), {"CPU": preflight.TRIAL_CPUS})
    state = run_dir / TUNE
    before = taken_up(state, run_dir / TRIALS, trainable)
    if before is not None:
        print(f"going on with the search in {run_dir}", flush=True)
        return before
    # What a crash in the first seconds left: without Tune's state nobody knows which trial is which.
    shutil.rmtree(run_dir / TRIALS, ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)
    (run_dir / RUNGS).unlink(missing_ok=True)
    begin_study(search, run_dir / JOURNAL)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CONFIG).write_text(to_yaml(search), encoding="utf-8")
    (run_dir / BASE).write_text(to_yaml(base), encoding="utf-8")
    steps, quality = base.optim.steps, base.objective.quality
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=search.trials,
            max_concurrent_trials=at_once,
            search_alg=JointSearch(search, quality, steps, run_dir / JOURNAL, refuse),
            scheduler=_scheduler(search, steps, run_dir / RUNGS),
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=str(run_dir),
            failure_config=tune.FailureConfig(max_failures=MOST_FAILURES),
            callbacks=[Narrator(quality, steps, search.trials), *_trackers(base, run_dir), *_mirrors(base, run_dir)],
            verbose=0,
        ),
    )


def _trainable(trial: TrialRun, run_dir: Path) -> Callable[[dict[str, Any]], None]:
    """What Tune runs for a trial: one training run, in a directory that follows from the trial's number."""

    def run(suggestion: dict[str, Any]) -> None:
        number = suggestion[TRIAL]
        # One checkpoint each: with the optimizer's state it is three times the student, and there are many trials.
        own = {"checkpoint.keep": 1, **own_storage(trial.base, TRIALS, number)}
        trial.run(run_dir / TRIALS / number, number, {**suggestion[VALUES], **own})

    return run


def _trackers(base: DistillConfig, run_dir: Path) -> list[Hparams]:
    return [Hparams(run_dir / TRIALS)] if "tensorboard" in base.run.loggers else []


def _mirrors(base: DistillConfig, run_dir: Path) -> list[Mirror]:
    """What keeps the search's own state where its checkpoints are, if that is not the run directory."""
    if base.checkpoint.storage_path is None:
        return []
    return [Mirror(run_dir, (CONFIG, BASE, JOURNAL, RUNGS, TUNE), checkpoint_folder(base, run_dir))]


def weighs_features(search: SearchConfig, base: DistillConfig) -> bool:
    """Whether any trial may imitate the teacher's features."""
    return base.distillation.gamma > 0 or "distillation.gamma" in search.space


def tidy(base: DistillConfig, run_dir: Path, front: Container[str]) -> None:
    """Delete what trials that are over have left: checkpoints cut short, and training state of those off the front.

    Training state is what only training on would need, most of a checkpoint. Over are the trials that Tune wrote down
    as terminated. It takes up no such trial again, but does one that failed, and one that was under way when somebody
    interrupted the search, which `fit` gives back as terminated, too.
    """
    for trial in tune.ExperimentAnalysis(str(run_dir / TUNE)).trials:
        number = trial.config[TRIAL]
        if trial.status == Trial.TERMINATED:
            own = with_overrides(base, own_storage(base, TRIALS, number))
            folder = checkpoint_folder(own, run_dir / TRIALS / number)
            folder.clear()
            for entry in folder.entries() if number not in front else ():
                folder.drop(entry.name, TRAINING)


def _scheduler(search: SearchConfig, steps: int, memory: Path) -> TrialScheduler:
    grace = max(1, round(search.asha.grace_share * steps))
    if not search.asha.enabled or grace >= steps:
        return FIFOScheduler()
    return RememberingAsha(memory, steps=steps, grace=grace, reduction_factor=search.asha.reduction_factor)


def _require_same_search(search: SearchConfig, run_dir: Path) -> None:
    """ConfigError where the directory holds another search, or one that is unreadable by now.

    Where it ran and what it logged does not count.
    """
    found = run_dir / CONFIG
    if not found.is_file():
        return
    content = read_yaml(found)
    try:
        held = build(SearchConfig, {}, content)
    except ConfigError as error:
        way_out = "Another version of sam3dist may have written it; choose another run.dir."
        raise ConfigError(f"{found}: {error} {way_out}") from None
    if _question(held) != _question(search):
        raise ConfigError(f"run.dir={run_dir}: holds another search, see its {CONFIG}; choose another run.dir.")


def _question(search: SearchConfig) -> SearchConfig:
    """The search without what may change: where it runs, and what follows it."""
    kept = {key: value for key, value in search.overrides.items() if not key.startswith("run.")}
    # Through text and back, because YAML knows lists only.
    return SearchConfig.model_validate_json(
        search.model_copy(update={"overrides": kept, "finalists": FinalistsConfig()}).model_dump_json()
    )
