"""A search as `sam3dist tune` suggests its trials, one at a time, without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from cluster.searcher import LIMITS, Refusal, Space, make_sampler

if TYPE_CHECKING:
    from sam3dist.config.search import SearchConfig

SHAPES = "shape"
"""A key whose values are whole shapes: dotted keys with their values, as JSON."""

Point = tuple[float, float]
"""(quality, size)."""
Found = list[tuple[dict[str, Any], Point]]


def ask_and_tell(search: SearchConfig, refuse: Refusal | None, train: Callable[[Mapping[str, Any]], Point]) -> Found:
    """Values and point of as many trials as the search has; what is refused does not count."""
    study = optuna.create_study(sampler=make_sampler(search), directions=["maximize", "minimize"])
    for seed in search.seeds:
        study.enqueue_trial(dict(seed))
    suggest, found = Space(search.space), []
    while len(found) < search.trials:
        trial = study.ask()
        values = suggest(trial)
        values |= json.loads(values.pop(SHAPES, "{}"))
        objection = refuse(values) if refuse else None
        if objection is None:
            point = train(values)
            found.append((values, point))
            study.tell(trial, point)
        else:
            trial.set_constraint(LIMITS, objection.excess)
            study.tell(trial, state=TrialState.PRUNED)
    return found
