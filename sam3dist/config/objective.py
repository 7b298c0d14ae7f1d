"""What makes one student better than another."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sam3dist.config.base import Settings


class ObjectiveConfig(Settings):
    """score = quality - size_weight * log10(size / reference), what ASHA and the table rank by."""

    quality: Literal["miou_all", "miou_positive", "presence_f1", "cgf1", "dice"] = "miou_all"
    """The metric to raise: mean IoU over all phrases or over those that name something, the F1 of telling which
    do, cgF1 (both in one), or mean Dice."""
    size: Literal["params_millions", "megabytes", "latency_ms"] = "params_millions"
    """What to keep small: the parameters, the weights in MB at `precision`, or the milliseconds that the student takes
    for an image and a phrase, measured where it trains, so let one kind of machine do that."""
    precision: Literal["fp32", "fp16", "int8", "int4"] = "int4"
    """At which the megabytes count."""
    size_weight: float = Field(0.1, ge=0)
    """Quality worth a tenfold smaller student."""
