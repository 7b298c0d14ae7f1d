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
from functools import partial
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from sam3dist.config.load import with_overrides
from sam3dist.config.space import Choice, Integer, LogUniform, draw
from sam3dist.errors import ConfigError, first_line
from sam3dist.models.size import model_size
from sam3dist.models.student import student_config

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.config.search import SearchConfig
    from sam3dist.config.space import Range, Remainder

optuna.logging.set_verbosity(optuna.logging.WARNING)

PATIENCE = 5
"""Refusals in a row before random points replace the sampler's, which learns nothing from one and may repeat it."""
MOST_REFUSALS = 1000
TRIAL, VALUES = "trial", "values"
"""Keys of the configuration Tune hands to a trial: its number in Optuna's study, and the dotted keys it sets."""
REFUSED, LIMITS = "refused", "limits"
"""Of a trial in the study: the attribute with the reason, and the constraint, above 0 where a limit is broken."""


@dataclass(frozen=True)
class Refused:
    """A suggestion that was not trained, and why."""

    trial: str
    values: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Objection:
    """Why a student is not trained, in one line, and how far it is from one that would be: above 0."""

    reason: str
    excess: float = 1.0
    """Decades above the limit; 1 where the shape is impossible."""


@dataclass(frozen=True)
class Refusal:
    """Whether a student can be trained, asked before it is: its shape may be impossible, or it may be too large."""

    base: DistillConfig
    teacher: Any  # Sam3Config
    max_params_millions: float | None = None
    max_megabytes: float | None = None
    """At `objective.precision`."""

    def __call__(self, values: Mapping[str, Any]) -> Objection | None:
        """What speaks against these dotted keys with their values, or None. About 0.1 s."""
        try:
            shape = student_config(with_overrides(self.base, values).student, self.teacher)
        except ConfigError as error:
            return Objection(str(error))
        if self.max_params_millions is None and self.max_megabytes is None:
            return None
        size, precision = model_size(shape), self.base.objective.precision
        found = [
            (size.params_millions, self.max_params_millions, "million parameters are above max_params_millions"),
            (size.megabytes[precision], self.max_megabytes, f"MB in {precision} are above max_megabytes"),
        ]
        for value, limit, words in found:
            if limit is not None and value > limit:
                return Objection(f"{value:.3f} {words}={limit:g}.", log10(value / limit))
        return None


class JointSearch(OptunaSearch):
    """Suggests loss knobs and shape together, for the largest quality and the smallest size, or the highest score."""

    def __init__(self, search: SearchConfig, quality: str, steps: int, journal: Path, refuse: Refusal) -> None:
        """quality: the metric to maximise. steps: of a whole trial. journal: the study's file, where search.storage
        names no other place."""
        self._refuse, self._steps, self._spare_seed = refuse, steps, search.seed
        self._max_latency_ms = search.max_latency_ms
        front = search.goal == "front"
        super().__init__(
            space=Space(search.space),
            metric=[quality, "size"] if front else "score",
            mode=["max", "min"] if front else "max",
            points_to_evaluate=[dict(point) for point in search.seeds],
            sampler=make_sampler(search),
            study_name=search.name,
            storage=study_storage(search, journal),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next point that can train; FINISHED when none was found among a thousand."""
        study = self._ot_study
        for attempt in range(MOST_REFUSALS):
            number = len(study.get_trials(deepcopy=False))
            study.sampler = RandomSampler(self._spare_seed + number) if attempt >= PATIENCE else self._sampler
            asked = study.ask()
            values, name = self._space(asked), f"{asked.number:03d}"
            objection = self._refuse(values)
            if objection is None:
                self._ot_trials[trial_id] = asked
                return {TRIAL: name, VALUES: values}
            asked.set_user_attr(REFUSED, objection.reason)
            asked.set_constraint(LIMITS, objection.excess)
            study.tell(asked, state=TrialState.PRUNED)  # a failed one would not be looked at again
            print(f"trial {name}  refused: {objection.reason}", flush=True)
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended; one that stopped before its last step is pruned."""
        if result and not error and trial_id not in self._completed_trials:
            asked, latency = self._ot_trials[trial_id], result.get("latency_ms")
            if latency is not None and self._max_latency_ms is not None:
                asked.set_constraint(LIMITS, log10(latency / self._max_latency_ms))
            if result.get("step", 0) < self._steps:
                self._ot_study.tell(asked, state=TrialState.PRUNED)
                self._completed_trials.add(trial_id)
                return
        super().on_trial_complete(trial_id, result, error)


def refused_trials(search: SearchConfig, journal: Path) -> list[Refused]:
    """The refused suggestions of a search, of all its runs if it was restarted."""
    study = optuna.load_study(study_name=search.name, storage=study_storage(search, journal))
    return [
        Refused(f"{trial.number:03d}", _values(search, trial.params), trial.user_attrs[REFUSED])
        for trial in study.get_trials(deepcopy=False)
        if REFUSED in trial.user_attrs
    ]


def _values(search: SearchConfig, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of a trial with their values, from those that Optuna was asked for."""
    return draw(search.space, lambda key, _: asked[key])


def begin_study(search: SearchConfig, journal: Path) -> None:
    """Clear away what a start that came to nothing has left of the study.

    ConfigError where a database has a study of this name with trials in it: they are those of another search.
    """
    journal.unlink(missing_ok=True)
    if search.storage is None:
        return
    storage = study_storage(search, journal)
    if search.name not in optuna.get_all_study_names(storage):
        return
    trials = optuna.load_study(study_name=search.name, storage=storage).get_trials(deepcopy=False)
    if any(trial.state.is_finished() for trial in trials):
        raise ConfigError(
            f"storage={search.storage}: has a study called {search.name} already; choose another name, or run.resume "
            "the directory of the search that it belongs to."
        )
    optuna.delete_study(study_name=search.name, storage=storage)


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
        # multivariate: knobs and shape depend on each other; constant_liar: trials run side by side; group: keys
        # under the same condition are suggested together.
        return TPESampler(
            seed=search.seed,
            n_startup_trials=search.startup_trials,
            multivariate=True,
            constant_liar=True,
            group=any(getattr(span, "when", None) for span in search.space.values()),
        )


@dataclass(frozen=True)
class Space:
    """The search space as Optuna's define-by-run function. An object, because Tune pickles it."""

    ranges: Mapping[str, Range | Remainder]

    def __call__(self, trial: Any) -> dict[str, Any]:
        """The dotted keys of a trial with their values."""
        return draw(self.ranges, partial(_ask, trial))


def _ask(trial: Any, key: str, span: Range) -> Any:
    if isinstance(span, Choice):
        return trial.suggest_categorical(key, span.choice)
    if isinstance(span, Integer):
        return trial.suggest_int(key, *span.integer, step=span.step)
    if isinstance(span, LogUniform):
        return trial.suggest_float(key, *span.loguniform, log=True)
    return trial.suggest_float(key, *span.uniform)


def require_some_shape(search: SearchConfig, refuse: Refusal, tries: int = 200) -> None:
    """Return if the space has a student that can train; ConfigError with the usual reason if no random point is one."""
    study = optuna.create_study(sampler=RandomSampler(search.seed))
    space, reasons = Space(search.space), Counter[str]()
    for point in search.seeds:
        study.enqueue_trial(dict(point))
    for _ in range(tries):
        objection = refuse(space(study.ask()))
        if objection is None:
            return
        reasons[objection.reason] += 1
    usual = reasons.most_common(1)[0][0]
    raise ConfigError(f"space: none of {tries} points of it can be trained, most often because: {usual}")


def study_storage(search: SearchConfig, journal: Path) -> BaseStorage:
    """Where the study of a search is: at the URL it names, else in the journal. ConfigError where no store answers."""
    if search.storage is None:
        return JournalStorage(JournalFileBackend(str(journal)))
    try:
        return RDBStorage(search.storage)
    except Exception as error:  # SQLAlchemy's, its drivers', or a missing package
        raise ConfigError(
            f"storage={search.storage}: no such store ({first_line(error)}); write sqlite:////DIRECTORY/studies.db, "
            "the URL of a server as SQLAlchemy knows it, or null for a file in the run directory."
        ) from error
