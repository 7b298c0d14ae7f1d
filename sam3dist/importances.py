"""Which knobs told good trials from others, and which small ones, as Optuna estimates it, beside what chance would."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sam3dist.knobs import axis_of, is_number, keys_of, worded
from sam3dist.objective import searched_size

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FEWEST = 8
"""Done trials below which an importance would be made of nothing but chance."""
BEST_SHARE = 0.5
"""Of the trials, those whose knobs are compared with all. In made-up searches of 24 trials halves showed more of the
knobs that decide the quality than thirds did, and no more of the idle ones."""
SHUFFLES, PASS = 39, 2
"""Of so many shuffled searches and the real one, so many have an importance above what is told as that of chance."""


def importances(done: Sequence[Mapping[str, Any]], quality: str) -> list[dict[str, Any]]:
    """One row a knob: {knob, quality, quality_by_chance, size, size_by_chance}, the most important for quality first.

    done: the trials that were trained to their end. The importances are shares that add up to 1, from PED-ANOVA
    (Watanabe et al. 2023; Optuna's own choice, and the only one of its evaluators that needs no scikit-learn and
    takes knobs that only some trials have): how far the values of a knob among the better half of the trials, and
    among the smaller half, differ from those of all. Among few trials they differ by chance, too, and knobs without
    any effect then share what there is, so each comes with the importance, in the same unit, that it exceeds in one of
    twenty searches whose qualities and sizes are dealt to the trials at random. Empty for fewer than `FEWEST` trials
    or where no knob varies.
    """
    usable = [
        trial
        for trial in done
        if is_number((trial.get("metrics") or {}).get(quality)) and is_number(searched_size(trial))
    ]
    if len(usable) < FEWEST:
        return []
    study, knobs = _study(usable)
    if not knobs:
        return []
    wanted = {
        "quality": [-float(trial["metrics"][quality]) for trial in usable],
        "size": [float(searched_size(trial)) for trial in usable],
    }
    columns: dict[str, dict[str, float]] = {}
    for name, values in wanted.items():
        found = _divergences(study, knobs, values)
        whole = sum(found.values()) or 1.0
        chance = _by_chance(study, knobs, values)
        columns[name] = {knob: found[knob] / whole for knob in knobs}
        columns[f"{name}_by_chance"] = {knob: chance[knob] / whole for knob in knobs}
    rows = [{"knob": knob, **{name: column[knob] for name, column in columns.items()}} for knob in knobs]
    return sorted(rows, key=lambda row: -row["quality"])


def too_few(trials: Sequence[Mapping[str, Any]]) -> str:
    """Why `importances` has nothing to say of these trials, done or not; nothing where there are enough."""
    done = sum(trial["state"] == "done" for trial in trials)
    if done >= FEWEST:
        return ""
    count = {0: "no trial is", 1: "1 trial is"}.get(done, f"{done} trials are")
    return f"Which knobs mattered is not shown: {count} done, and of fewer than {FEWEST} only chance would speak."


def _by_chance(study: Study, knobs: list[str], values: Sequence[float]) -> dict[str, float]:
    """What `_divergences` exceeds for each knob in one of twenty ways to deal the values to the trials."""
    draw, dealt = random.Random(0), list(values)
    found: list[dict[str, float]] = []
    for _ in range(SHUFFLES):
        draw.shuffle(dealt)
        found.append(_divergences(study, knobs, dealt))
    return {knob: sorted(one[knob] for one in found)[-PASS] for knob in knobs}


def _divergences(study: Study, knobs: list[str], values: Sequence[float]) -> dict[str, float]:
    """How far each knob of the trials with the lower values differs from that of all; one value a trial."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    def value(trial: FrozenTrial) -> float:
        return values[trial.number]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that low is better, and that few trials are few
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        return get_param_importances(study, evaluator=evaluator, params=knobs, target=value, normalize=False)


def _study(trials: Sequence[Mapping[str, Any]]) -> tuple[Study, list[str]]:
    """A study in memory of these trials, and those of its knobs that take more than one value."""
    import optuna

    keys = keys_of(trials)
    known = {key: _distribution([trial["config"][key] for trial in trials if key in trial["config"]]) for key in keys}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # nobody wants to read that a study was created
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(before)
    for trial in trials:
        ranges = {key: known[key] for key in trial["config"]}
        params = {key: _value(value, known[key]) for key, value in trial["config"].items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=0.0))
    return study, [key for key in keys if not known[key].single()]


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """The range of values of one knob. The report does not say what might have been drawn, only what was."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    axis = axis_of(values)
    if not axis.numeric:
        return CategoricalDistribution(axis.values)
    low, high = axis.values[0], axis.values[-1]
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=axis.log)
    return FloatDistribution(low, high, log=axis.log)


def _value(value: Any, distribution: BaseDistribution) -> Any:
    """The value as the distribution knows it: what is no number as text, because True is 1 to Optuna."""
    from optuna.distributions import CategoricalDistribution

    return worded(value) if isinstance(distribution, CategoricalDistribution) else value
