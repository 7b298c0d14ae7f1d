"""What report.json always holds. People and scripts read these keys: more may come, none is renamed."""

from collections.abc import Mapping
from typing import Any

EVERY_VERB = {"verb", "status", "run_dir", "seconds", "versions"}
METRICS = {"miou_positive", "miou_all", "presence_precision", "presence_recall", "presence_f1", "dice"}
SEARCH = {"trials", "front", "best", "hypervolume", "goodput", "useful_seconds", "wall_seconds"}
SEARCH |= {"recommended", "importances", "progress", "why_empty"}
TIMES = {"goodput", "waiting_share", "step_seconds", "useful_seconds", "wall_seconds"}
COMPARISON = {"student", "teacher", "student_over_teacher", "figures"}
KEYS = {
    "prepare": {"rows", "phrases", "positives", "negatives", "instances", "rejected"},
    "teach": {"pairs", "bytes_per_pair", "bytes_per_image", "fidelity", "recomputed", "goodput", "asking_seconds"},
    "train": {"metrics", "before", "params_millions", "megabytes", "checkpoint", "samples_per_second"} | TIMES,
    "eval": {"metrics", "num_pairs", "num_positive", "num_negative"},
    "compare": COMPARISON,
    "predict": set(),
    "weights": {"source", "checkpoint", "parameters", "dtype", "bytes", "sha256", "left_out"},
    "sizes": {"compositions"},
    "tune": SEARCH,
    "smoke": SEARCH | COMPARISON,
}
TRIAL = {"trial", "state", "config", "metrics", "params_millions"}
POINT = {"trial", "miou_all", "params_millions", "megabytes", "checkpoint"}
RECOMMENDED = {"limit_mb", "precision", "trial", "quality", "params_millions", "megabytes", "checkpoint", "command"}


def assert_promised(report: Mapping[str, Any]) -> None:
    """The report of a verb that found at least one trial, if it searched, has every key, down to the metrics."""
    assert report.keys() >= EVERY_VERB | KEYS[report["verb"]]
    assert {"sam3dist", "python", "torch", "transformers", "ray"} <= report["versions"].keys()
    for key in {"metrics", "before", "student", "teacher"} & report.keys():
        assert report[key].keys() >= METRICS, key
    if "megabytes" in report:
        assert report["megabytes"].keys() >= {"fp32", "fp16"}
    if "trials" in report:
        assert report["trials"]
        assert report["front"]
        assert all(trial.keys() >= TRIAL for trial in report["trials"])
        assert all(point.keys() >= POINT for point in report["front"])
        assert report["recommended"]
        assert all(row.keys() >= RECOMMENDED for row in report["recommended"])
