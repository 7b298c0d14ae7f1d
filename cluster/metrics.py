"""The numbers of a run for Prometheus: gauges that Ray exports on every node, on the metrics port, without a token."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from ray.util.metrics import Gauge

PREFIX = "sam3dist_"
STEP, LOSS = "step", "loss"
GAUGES: Mapping[str, str] = {
    STEP: "Training steps done",
    "epoch": "Passes over the training images",
    "step_seconds": "Seconds of a training step, without the wait for data, mean since the last point",
    "data_wait_seconds": "Seconds that a training step waited for its data, mean since the last point",
    "images_per_second": "Images trained on by all workers, per second of steps and of waiting for data",
    "goodput": "Share of the wall time since the run began spent in the training steps that count",
    "waiting_share": "Share of that time spent waiting for data",
    "learning_rate": "Learning rate of the last step",
    "grad_norm": "Norm of the gradient of the last step, before it was clipped",
    LOSS: "Mean of a loss term since the last point; the tag `term` says which: total, task, task/dice, ...",
    "miou_all": "Mean IoU over all phrases of the validation data, as of the last evaluation",
    "miou_positive": "Mean IoU over the phrases that name something there",
    "dice": "Mean Dice over the phrases that name something there",
    "presence_f1": "F1 of telling which phrases name something there",
    "presence_precision": "Precision of telling which phrases name something there",
    "presence_recall": "Recall of telling which phrases name something there",
    "score": "Quality less the weight of the size, by which trials are ranked",
}
"""By name without PREFIX, as in history.jsonl; all have the tags `run` and `trial`. Ray puts "ray_" before all names.

Gauges rather than histograms: a point of the curves is the mean of many steps already, and a dashboard shows what
history.jsonl does. Other metrics are in history.jsonl and the trackers.
"""


class Prometheus:
    """A logger (`engine/loggers.py`) that sets gauges. They cost microseconds a point; Ray collects them by itself."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        """labels: "run" and "trial"; of a run that is no trial the latter is empty."""
        self.labels = dict(labels)
        self.gauges: dict[str, Gauge] = {}

    def start(self, step: int) -> None:
        for name, meaning in GAUGES.items():
            keys = (*self.labels, "term") if name == LOSS else tuple(self.labels)
            self.gauges[name] = Gauge(PREFIX + name, meaning, keys).set_default_tags(self.labels)

    def log(self, step: int, kind: str, values: dict[str, float]) -> None:
        self.gauges[STEP].set(step)
        for name, value in values.items():
            if not isfinite(value):
                continue  # such as the F1 where nothing was to be found
            if "/" in name:
                self.gauges[LOSS].set(value, {"term": name.removeprefix("loss/")})
            elif name in self.gauges:
                self.gauges[name].set(value)

    def close(self) -> None:
        """Nothing is held back."""
