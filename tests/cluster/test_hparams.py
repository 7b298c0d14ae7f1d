"""TensorBoard's table of trials, read back from the event files."""

from __future__ import annotations

from math import nan
from pathlib import Path

from ray.tune.experiment import Trial
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from cluster.hparams import Hparams
from cluster.searcher import TRIAL, VALUES

GIVEN = {"distillation.alpha": 0.5, "student.vision_depth": 4, "student.backbone": None, "student.init": "pca"}


def test_a_trial_has_a_row_of_what_it_was_given_and_how_it_ended(tmp_path: Path):
    trial = Trial("trial", config={TRIAL: "003", VALUES: GIVEN}, stub=True)
    measured = {"miou_all": 0.75, "cgf1": nan, "score": 0.9, "params_millions": 1.5, "size": 1.5}
    trial.run_metadata.last_result = {"step": 40, "before": {"miou_all": 0.5, "cgf1": nan}, **measured}
    Hparams(tmp_path).on_trial_complete(0, [trial], trial)
    events = EventAccumulator(str(tmp_path / "003" / "tensorboard"))
    events.Reload()
    shown = {"miou_all", "score", "params_millions", "size"}
    assert set(events.Tags()["scalars"]) == {f"hparam/{name}" for name in shown}
    assert events.Scalars("hparam/miou_all")[0].value == 0.75
    kept = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    values = HParamsPluginData.FromString(kept).session_start_info.hparams
    assert values["distillation.alpha"].number_value == 0.5
    assert values["student.backbone"].string_value == "None"
    assert values["student.init"].string_value == "pca"
