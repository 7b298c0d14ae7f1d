"""Optuna as Tune's search algorithm: what to try next, in two objectives, among shapes that can exist.

Differs from Ray's OptunaSearch in what it was measured to get wrong or leaves out: a trial that ASHA stopped is told as
pruned (Ray tells its last partial value as final, so half-trained students enter Optuna's front), and a suggestion
that cannot train is refused before it costs a trial.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from sam3dist.config.load import with_overrides
from sam3dist.config.search import Choice, Integer, LogUniform
from sam3dist.errors import ConfigError
from sam3dist.models.size import model_size
from sam3dist.models.student import student_config

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.config.search import Range, SearchConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)

PATIENCE = 5
"""Refusals in a row before random points replace the sampler's, which learns nothing from one and may repeat it."""
MOST_REFUSALS = 1000
TRIAL, VALUES = "trial", "values"
"""Keys of the configuration Tune hands to a trial: its number in Optuna's study, and the dotted keys it sets."""
REFUSED = "refused"
"""Attribute of a trial in the study: the reason."""


@dataclass(frozen=True)
class Refused:
    """A suggestion that was not trained, and why."""

    trial: str
    values: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Refusal:
    """Why a student cannot be trained, asked before it is: its shape is impossible, or it is too large."""

    base: DistillConfig
    teacher: Any  # Sam3Config
    max_params_millions: float | None

    def __call__(self, values: Mapping[str, Any]) -> str | None:
        """The reason for these dotted keys with their values, in one line, or None. About 0.1 s."""
        try:
            shape = student_config(with_overrides(self.base, values).student, self.teacher)
        except ConfigError as error:
            return str(error)
        if self.max_params_millions is None:
            return None
        params = model_size(shape).params_millions
        if params <= self.max_params_millions:
            return None
        return f"{params:.3f} million parameters are above max_params_millions={self.max_params_millions:g}."


class JointSearch(OptunaSearch):
    """Suggests loss knobs and shape together, for the largest quality and the fewest parameters."""

    def __init__(self, search: SearchConfig, quality: str, steps: int, journal: Path, refuse: Refusal) -> None:
        """quality: the metric to maximise. steps: of a whole trial. journal: the study's file, for optuna-dashboard."""
        self._refuse, self._steps, self._spare_seed = refuse, steps, search.seed
        super().__init__(
            space=Space(search.space),
            metric=[quality, "params_millions"],
            mode=["max", "min"],
            points_to_evaluate=[dict(point) for point in search.seeds],
            sampler=make_sampler(search),
            study_name=search.name,
            storage=_storage(journal),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next point that can train; FINISHED when none was found among a thousand."""
        study = self._ot_study
        for attempt in range(MOST_REFUSALS):
            number = len(study.get_trials(deepcopy=False))
            study.sampler = RandomSampler(self._spare_seed + number) if attempt >= PATIENCE else self._sampler
            asked = study.ask()
            self._space(asked)
            values, name = dict(asked.params), f"{asked.number:03d}"
            reason = self._refuse(values)
            if reason is None:
                self._ot_trials[trial_id] = asked
                return {TRIAL: name, VALUES: values}
            asked.set_user_attr(REFUSED, reason)
            study.tell(asked, state=TrialState.FAIL)
            print(f"trial {name}  refused: {reason}", flush=True)
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended; one that stopped before its last step is pruned."""
        stopped = result and not error and result.get("step", 0) < self._steps
        if stopped and trial_id not in self._completed_trials:
            self._ot_study.tell(self._ot_trials[trial_id], state=TrialState.PRUNED)
            self._completed_trials.add(trial_id)
        else:
            super().on_trial_complete(trial_id, result, error)


def refused_trials(journal: Path, study: str) -> list[Refused]:
    """The refused suggestions of a search, of all its runs if it was restarted."""
    found = optuna.load_study(study_name=study, storage=_storage(journal)).get_trials(states=[TrialState.FAIL])
    return [
        Refused(f"{trial.number:03d}", trial.params, trial.user_attrs[REFUSED])
        for trial in found
        if REFUSED in trial.user_attrs
    ]


def make_sampler(search: SearchConfig) -> BaseSampler:
    """The sampler of a search, in its first trials random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.startup_trials is None:
            assert search.sampler == "random"
            return RandomSampler(seed=search.seed)
        if search.sampler == "gp":
            return GPSampler(seed=search.seed, n_startup_trials=search.startup_trials)
        if search.sampler == "nsga2":
            return NSGAIISampler(seed=search.seed, population_size=max(2, search.startup_trials))
        # multivariate: knobs and shape depend on each other; constant_liar: trials run side by side.
        return TPESampler(
            seed=search.seed, n_startup_trials=search.startup_trials, multivariate=True, constant_liar=True
        )


@dataclass(frozen=True)
class Space:
    """The search space as Optuna's define-by-run function. An object, because Tune pickles it."""

    ranges: Mapping[str, Range]

    def __call__(self, trial: Any) -> None:
        for key, span in self.ranges.items():
            _ask(trial, key, span)


def _ask(trial: Any, key: str, span: Range) -> None:
    if isinstance(span, Choice):
        trial.suggest_categorical(key, span.choice)
    elif isinstance(span, Integer):
        trial.suggest_int(key, *span.integer, step=span.step)
    elif isinstance(span, LogUniform):
        trial.suggest_float(key, *span.loguniform, log=True)
    else:
        trial.suggest_float(key, *span.uniform)


def require_some_shape(search: SearchConfig, refuse: Refusal, tries: int = 200) -> None:
    """Return if the space has a student that can train; ConfigError with the usual reason if no random point is one."""
    study = optuna.create_study(sampler=RandomSampler(search.seed))
    space, reasons = Space(search.space), Counter[str]()
    for point in search.seeds:
        study.enqueue_trial(dict(point))
    for _ in range(tries):
        trial = study.ask()
        space(trial)
        reason = refuse(trial.params)
        if reason is None:
            return
        reasons[reason] += 1
    usual = reasons.most_common(1)[0][0]
    raise ConfigError(f"space: none of {tries} points of it can be trained, most often because: {usual}")


def _storage(journal: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(journal)))
