"""What a search may vary, in which range, and when it stops."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sam3dist.config.distill import DistillConfig, Settings


class Choice(Settings):
    """One of a few values."""

    choice: tuple[Any, ...] = Field(min_length=1)
    """The values, at least one."""


class Uniform(Settings):
    """A number, each as likely as another."""

    uniform: tuple[float, float]
    """The lowest and the highest."""


class LogUniform(Settings):
    """A number whose logarithms are equally likely, as suits rates and weights."""

    loguniform: tuple[float, float]
    """The lowest, above 0, and the highest."""


class Integer(Settings):
    """A whole number, each as likely as another."""

    integer: tuple[int, int]
    """The lowest and the highest."""
    step: int = Field(1, ge=1)
    """Between neighbouring values, counted from the lowest."""


Range = Choice | Uniform | LogUniform | Integer


class AshaConfig(Settings):
    """Asynchronous successive halving: a trial that is behind at a rung stops there."""

    grace_share: float = Field(0.34, gt=0, le=1)
    """Share of the steps every trial may train before it can be stopped."""
    reduction_factor: float = Field(2.0, gt=1)
    """Of the trials at a rung about one in this many goes on, to a rung at this many times the steps."""
    enabled: bool = True
    """Whether trials are stopped at all."""


class SearchConfig(Settings):
    """One search: a base run, the ranges of what varies, and the limits."""

    name: str = "search"
    """Names the run directory, where run.dir does not, and Optuna's study."""
    preset: str = "base"
    """The run every trial starts from."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys set on the preset for all trials."""
    space: dict[str, Range] = Field(min_length=1)
    """Dotted key of the run -> its range."""
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
    max_params_millions: float | None = Field(None, gt=0)
    """Hard limit: a larger student is refused before it trains."""
    asha: AshaConfig = AshaConfig()
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
    def _ranges_are_ordered(self) -> SearchConfig:
        for key, span in self.space.items():
            bounds = next((getattr(span, k) for k in ("uniform", "loguniform", "integer") if hasattr(span, k)), None)
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(f"space.{key}: the lower bound {bounds[0]} is above the upper bound {bounds[1]}.")
            if isinstance(span, LogUniform) and span.loguniform[0] <= 0:
                raise ValueError(f"space.{key}: loguniform needs a lower bound above 0.")
        return self

    def base(self) -> DistillConfig:
        """The run every trial starts from, overrides applied."""
        from sam3dist.config.load import load_preset, with_overrides

        return with_overrides(load_preset(self.preset), self.overrides)
