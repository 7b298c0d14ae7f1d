"""What the search tries next, and what it learns, without Ray."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from math import log2
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from cluster.searcher import (
    LIMITS,
    REFUSED,
    TRIAL,
    VALUES,
    JointSearch,
    Objection,
    Refusal,
    begin_study,
    make_sampler,
    refused_trials,
    require_some_shape,
)
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.config.search import SearchConfig
from sam3dist.errors import ConfigError
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.size import model_size
from sam3dist.models.student import student_config

STEPS = 100
WIDTH = "student.vision_width"


class Above:
    """Refuses widths above a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, values: Mapping[str, Any]) -> Objection | None:
        excess = log2(values[WIDTH] / max(self.limit, 1))
        return Objection(f"width {values[WIDTH]} is too much", excess) if values[WIDTH] > self.limit else None


def make_search(**settings: Any) -> SearchConfig:
    space = {WIDTH: {"choice": (16, 32, 64, 128)}, "distillation.temperature": {"uniform": (1.0, 6.0)}}
    startup = {} if settings.get("sampler") == "random" else {"startup_trials": 2}
    return SearchConfig.model_validate({"space": space, **startup, **settings})


def joint(search: SearchConfig, folder: Path, limit: int = 1000) -> JointSearch:
    return JointSearch(search, "miou_all", STEPS, folder / "journal", Above(limit))  # type: ignore[arg-type]


def told(step: int, quality: float = 0.5, size: float = 1.0) -> dict[str, float]:
    return {"step": step, "miou_all": quality, "size": size, "score": quality - size}


def states(search: JointSearch) -> list[str]:
    return [trial.state.name for trial in search._ot_study.trials]


def test_a_trial_stopped_on_the_way_is_pruned_and_stays_off_the_front(tmp_path: Path):
    search = joint(make_search(), tmp_path)
    for name in ("long", "short", "broken"):
        search.suggest(name)
    search.on_trial_complete("long", told(STEPS, quality=0.4))
    search.on_trial_complete("short", told(STEPS // 2, quality=0.9))
    search.on_trial_complete("broken", None, error=True)
    assert states(search) == ["COMPLETE", "PRUNED", "FAIL"]
    assert [trial.values for trial in search._ot_study.best_trials] == [[0.4, 1.0]]


def test_seeds_are_tried_first(tmp_path: Path):
    search = joint(make_search(seeds=({WIDTH: 64, "distillation.temperature": 2.5}, {WIDTH: 16})), tmp_path)
    first, second = search.suggest("a"), search.suggest("b")
    assert first == {TRIAL: "000", VALUES: {WIDTH: 64, "distillation.temperature": 2.5}}
    assert second[VALUES][WIDTH] == 16


def test_a_refused_suggestion_costs_no_trial_and_is_recorded_with_its_reason(tmp_path: Path):
    search_for_64 = make_search(seeds=({WIDTH: 128, "distillation.temperature": 2.0},))
    search = joint(search_for_64, tmp_path, limit=64)
    assert search.suggest("a")[VALUES][WIDTH] <= 64
    refused = refused_trials(search_for_64, tmp_path / "journal")
    assert refused[0].trial == "000"
    assert refused[0].values[WIDTH] == 128
    assert refused[0].reason == "width 128 is too much"


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_every_sampler_finds_the_rare_shape_that_can_train(sampler: str, tmp_path: Path):
    search = joint(make_search(sampler=sampler), tmp_path, limit=16)
    temperatures = set()
    for number in range(5):
        values = search.suggest(str(number))[VALUES]
        assert values[WIDTH] == 16
        temperatures.add(values["distillation.temperature"])
        search.on_trial_complete(str(number), told(STEPS, quality=values["distillation.temperature"] / 10))
    # Genetic search breeds copies; the others never repeat themselves.
    assert len(temperatures) == 5 or (sampler == "nsga2" and len(temperatures) > 1)


def test_the_search_ends_where_nothing_can_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.searcher.MOST_REFUSALS", 20)
    assert joint(make_search(), tmp_path, limit=0).suggest("a") == Searcher.FINISHED


def test_a_restored_search_goes_on_with_the_same_study(tmp_path: Path):
    search = joint(make_search(seed=3), tmp_path)
    search.suggest("a")
    search.save(str(tmp_path / "state"))
    other = joint(make_search(seed=3), tmp_path)
    other.restore(str(tmp_path / "state"))
    other.on_trial_complete("a", told(STEPS))
    assert states(other) == ["COMPLETE"]
    assert other.suggest("b")[TRIAL] == "001"


def test_samplers_survive_the_trip_to_the_tuner():
    for name in ("tpe", "gp", "nsga2", "random"):
        sampler = make_sampler(make_search(sampler=name))
        assert type(pickle.loads(pickle.dumps(sampler))) is type(sampler)


def test_impossible_and_too_large_students_are_refused_by_their_reason(
    tiny_teacher: Segmenter, tiny_run: DistillConfig
):
    teacher = tiny_teacher.net.config
    small = model_size(student_config(tiny_run.student, teacher)).params_millions
    refuse = Refusal(tiny_run, teacher, max_params_millions=small)
    assert refuse({}) is None
    impossible, large = refuse({WIDTH: 24}), refuse({WIDTH: 64})
    assert impossible is not None
    assert "use 16 or 32" in impossible.reason
    assert large is not None
    assert f"above max_params_millions={small:g}" in large.reason
    assert 0 < large.excess < impossible.excess


def test_the_limit_in_megabytes_is_that_of_the_precision_that_counts(tiny_teacher: Segmenter, tiny_run: DistillConfig):
    teacher = tiny_teacher.net.config
    sizes = model_size(student_config(tiny_run.student, teacher)).megabytes
    between = (sizes["int4"] + sizes["int8"]) / 2
    for precision, fits in (("int4", True), ("int8", False)):
        run = with_overrides(tiny_run, {"objective.precision": precision})
        objection = Refusal(run, teacher, max_megabytes=between)({})
        assert (objection is None) == fits, precision


def test_backbones_are_a_choice_of_a_search(tiny_teacher: Segmenter):
    refuse = Refusal(DistillConfig(), tiny_teacher.net.config, max_params_millions=2)
    small, large = "mobilenetv4_conv_small_050", "repvit_m1_1"
    assert refuse({"student.backbone": small}) is None
    assert refuse({"student.backbone": None}) is None
    for values, told in (
        ({"student.backbone": large}, "above max_params_millions=2"),
        ({"student.backbone": small, "student.image_size": 112}, "use 96 or 128"),
        ({"student.backbone": small, WIDTH: 16}, f"contradicts student.backbone={small}"),
    ):
        objection = refuse(values)
        assert objection is not None
        assert told in objection.reason


def test_a_space_without_a_possible_student_is_a_mistake_of_one_line():
    with pytest.raises(ConfigError, match=r"none of 50 points .* is too much"):
        require_some_shape(make_search(), Above(0), tries=50)  # type: ignore[arg-type]
    require_some_shape(make_search(), Above(16), tries=50)  # type: ignore[arg-type]


def test_the_reason_is_kept_where_optuna_dashboard_shows_it(tmp_path: Path):
    search = joint(make_search(seeds=({WIDTH: 128},)), tmp_path, limit=64)
    search.suggest("a")
    assert search._ot_study.trials[0].user_attrs[REFUSED] == "width 128 is too much"


def test_a_refusal_is_a_broken_constraint_that_the_sampler_learns_from(tmp_path: Path):
    """TPE comes to suggest few students above the limit; to chance, of four widths three would be too much."""
    asked = {}
    for sampler in ("tpe", "random"):
        folder = tmp_path / sampler
        folder.mkdir()
        search = joint(make_search(sampler=sampler, seed=1), folder, limit=16)
        for number in range(20):
            search.suggest(str(number))
            search.on_trial_complete(str(number), told(STEPS, quality=0.5 + number / 100))
        asked[sampler] = search._ot_study.trials
        refused = [trial for trial in asked[sampler] if REFUSED in trial.user_attrs]
        assert {trial.constraints[LIMITS] for trial in refused} <= {1.0, 2.0, 3.0}
    assert len(asked["tpe"]) < 0.7 * len(asked["random"])


def test_a_trial_slower_than_the_limit_is_off_the_front(tmp_path: Path):
    search = joint(make_search(max_latency_ms=10.0), tmp_path)
    for name, milliseconds in (("quick", 8.0), ("slow", 20.0)):
        search.suggest(name)
        search.on_trial_complete(name, {**told(STEPS, quality=milliseconds / 20), "latency_ms": milliseconds})
    assert [trial.number for trial in search._ot_study.best_trials] == [0]


def test_one_score_can_be_the_goal(tmp_path: Path):
    search = joint(make_search(goal="score"), tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", told(STEPS, quality=0.9, size=0.2))
    assert search._ot_study.best_value == pytest.approx(0.7)


def test_the_remainder_and_the_unmet_condition_reach_the_trial(tmp_path: Path):
    space = {
        "distillation.alpha": {"choice": [0.25]},
        "distillation.beta": {"one_minus": "distillation.alpha"},
        "student.text_tower": {"choice": ["clip"]},
        WIDTH: {"choice": [16], "when": {"student.text_tower": "clip"}},
        "student.text_width": {"choice": [64], "when": {"student.text_tower": []}},
    }
    search = joint(make_search(space=space), tmp_path)
    expected = {"distillation.alpha": 0.25, "distillation.beta": 0.75, "student.text_tower": "clip", WIDTH: 16}
    assert search.suggest("a")[VALUES] == expected


def test_a_study_that_came_to_nothing_makes_room(tmp_path: Path):
    search = make_search(storage=f"sqlite:///{tmp_path}/studies.db", name="mine")
    joint(search, tmp_path).suggest("a")  # and killed before it ended
    begin_study(search, tmp_path / "journal")
    assert joint(search, tmp_path).suggest("a")[TRIAL] == "000"


def test_the_study_can_be_kept_in_a_database_and_a_wrong_one_is_told(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/studies.db"
    search = make_search(storage=url, name="mine", seeds=({WIDTH: 128},))
    joint(search, tmp_path, limit=64).suggest("a")
    assert not (tmp_path / "journal").exists()
    assert refused_trials(search, tmp_path / "journal")[0].values[WIDTH] == 128
    with pytest.raises(ConfigError, match=r"has a study called mine already; choose another name"):
        begin_study(search, tmp_path / "journal")
    with pytest.raises(ConfigError, match=r"storage=nonsense://x: no such store \(.*\); write sqlite"):
        joint(make_search(storage="nonsense://x"), tmp_path)
