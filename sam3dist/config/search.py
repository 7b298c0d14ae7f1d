"""A search: the run that its trials start from, what they vary, who suggests, and who is stopped or refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sam3dist.config.base import Settings
from sam3dist.config.distill import DistillConfig
from sam3dist.config.space import Range, Remainder, mistake


class AshaConfig(Settings):
    """Asynchronous successive halving: a trial that is behind at a rung stops there."""

    grace_share: float = Field(0.34, gt=0, le=1)
    """Share of the steps every trial may train before it can be stopped."""
    reduction_factor: float = Field(2.0, gt=1)
    """Of the trials at a rung about one in this many goes on, to a rung at this many times the steps."""
    enabled: bool = True
    """Whether trials are stopped at all."""


class FinalistsConfig(Settings):
    """What follows a search: the best of its front trained anew, from other seeds and for longer."""

    count: int = Field(0, ge=0)
    """Students of the front to train anew, the best by score; 0 leaves it out."""
    seeds: int = Field(1, ge=1)
    """Runs of each, from run.seed on; three tell luck from quality."""
    steps: int | None = Field(None, ge=1)
    """Updates of each run; null is as many as a trial has."""


class SearchConfig(Settings):
    """One search: a base run, the ranges of what varies, and the limits."""

    name: str = "search"
    """Names the run directory, where run.dir does not, and Optuna's study."""
    preset: str = "base"
    """The run every trial starts from."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys set on the preset for all trials."""
    space: dict[str, Range | Remainder] = Field(min_length=1)
    """Dotted key of the run -> its range, or the key that it is the remainder of."""
    trials: int = Field(16, ge=1)
    """Students to train. A suggestion that is refused before it trains does not count."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at a time; each takes the CPUs of its workers and 0.1 for its driver. Null, or more than the cluster
    holds, is as many as it holds."""
    sampler: Literal["tpe", "gp", "nsga2", "random"] = "tpe"
    """What suggests the next trial: Parzen estimators, a Gaussian process, evolution, or chance."""
    startup_trials: int | None = Field(None, ge=1)
    """Random trials before the sampler's model takes over, by default 8; `random` has no model and takes no number."""
    seeds: tuple[dict[str, Any], ...] = ()
    """Configurations tried first, as dotted keys of `space`."""
    goal: Literal["front", "score"] = "front"
    """What the sampler is told to find: the front of objective.quality and objective.size, or the highest score, which
    weighs one against the other. The report shows the front either way."""
    max_params_millions: float | None = Field(None, gt=0)
    """Hard limit: a larger student is refused before it trains."""
    max_megabytes: float | None = Field(None, gt=0)
    """Hard limit of the weights at objective.precision, known before a student trains, too."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Hard limit that only objective.size=latency_ms measures: a slower student is kept off the front."""
    storage: str | None = None
    """Where the study is kept: a URL that SQLAlchemy knows, such as sqlite:////shared/studies.db or that of a server;
    null is a journal file in the run directory. `optuna-dashboard` opens either."""
    asha: AshaConfig = AshaConfig()
    finalists: FinalistsConfig = FinalistsConfig()
    seed: int = Field(0, ge=0)
    """Of the sampler; each trial trains with run.seed."""

    @model_validator(mode="before")
    @classmethod
    def _startup_follows_from_the_sampler(cls, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("sampler") == "random" or given.get("startup_trials") is not None:
            return given
        return {**given, "startup_trials": 8}

    @model_validator(mode="after")
    def _random_starts_nothing(self) -> SearchConfig:
        if self.sampler == "random" and self.startup_trials is not None:
            raise ValueError(
                f"startup_trials={self.startup_trials}: has no effect with sampler=random, which is random to the end; "
                "leave it out, or choose another sampler."
            )
        return self

    @model_validator(mode="after")
    def _space_makes_sense(self) -> SearchConfig:
        wrong = mistake(self.space)
        if wrong is not None:
            raise ValueError(wrong)
        return self

    def base(self) -> DistillConfig:
        """The run every trial starts from, overrides applied."""
        from sam3dist.config.load import load_preset, with_overrides

        return with_overrides(load_preset(self.preset), self.overrides)
