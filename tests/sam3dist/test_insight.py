import random
import shlex
from math import log10
from pathlib import Path

import pytest

from sam3dist.config.load import load_preset, to_yaml, with_overrides
from sam3dist.config.words import split
from sam3dist.importances import FEWEST, importances, too_few
from sam3dist.insight import command, insights, none_fits, progress, recommendations, why_empty
from tests.sam3dist.made_up import OBJECTIVE, search, trial


def test_each_limit_gets_the_best_done_trial_that_fits_it():
    trials = [
        trial("000", 0.3, 40),  # 20 MB in int4
        trial("001", 0.5, 90),
        trial("002", 0.9, 90, state="stopped"),
        trial("003", 0.4, 190),
        trial("004", 0.6, 300),
        trial("005", float("nan"), 10),
        trial("006", None, None, state="refused"),
    ]
    rows = recommendations(trials, "miou_all")
    assert [(row["limit_mb"], row["trial"]) for row in rows] == [(25, "000"), (50, "001"), (100, "001"), (200, "004")]
    last = {"limit_mb": 200, "precision": "int4", "trial": "004", "quality": 0.6, "params_millions": 300}
    last |= {"megabytes": 150.0, "checkpoint": trials[4]["checkpoint"], "smallest": {"trial": "000", "megabytes": 20.0}}
    assert rows[-1] == last
    in_fp16 = recommendations(trials, "miou_all", "fp16", (80, 200, 600))
    assert [row["trial"] for row in in_fp16] == ["000", "001", "004"]


def test_of_equally_good_trials_the_smaller_is_recommended():
    trials = [trial("000", 0.5, 40), trial("001", 0.5, 30)]
    assert {row["trial"] for row in recommendations(trials, "miou_all")} == {"001"}


def test_where_no_trial_fits_the_smallest_is_named():
    first, *others = recommendations([trial("000", 0.5, 100), trial("001", 0.4, 62.46)], "miou_all")
    assert (first["trial"], first["quality"], first["checkpoint"]) == (None, None, None)
    assert none_fits(first) == "none; the smallest, 001, has 31.2 MB"
    assert [row["trial"] for row in others] == ["000", "000", "000"]
    assert {none_fits(row) for row in recommendations([], "miou_all")} == {"no trial is done"}


def test_the_command_trains_as_long_as_the_preset_of_the_search(tmp_path: Path):
    (tmp_path / "search.yaml").write_text("preset: small\n")
    rows = [trial("000", 0.5) | {"step": 1500}]
    words = f"sam3dist train runs/s/trials/000/config.yaml run.dir=runs/s-000-full optim.steps={20000}"
    assert command("000", "runs/s", tmp_path, rows) == words
    (tmp_path / "mine.yaml").write_text("optim: {steps: 1000}\n")
    (tmp_path / "search.yaml").write_text(f"preset: {tmp_path / 'mine.yaml'}\n")
    assert command("000", "runs/s", tmp_path, rows).endswith("optim.steps=15000")  # the trial was longer than that
    (tmp_path / "search.yaml").unlink()
    assert command("000", "runs/s", tmp_path, rows).endswith("optim.steps=15000")


def test_the_command_survives_a_shell_and_leaves_the_checkpoints_of_the_trial_alone(tmp_path: Path):
    folder = tmp_path / "trials" / "000"
    folder.mkdir(parents=True)
    stored = "s3://mine/search/trials/000?endpoint_override=http://h:1"
    (folder / "config.yaml").write_text(f"optim: {{steps: 10}}\ncheckpoint: {{storage_path: '{stored}'}}\n")
    said = command("000", "my runs/s", tmp_path, [trial("000", 0.5)])
    assert said == (
        "sam3dist train 'my runs/s/trials/000/config.yaml' 'run.dir=my runs/s-000-full' optim.steps=100 "
        "'checkpoint.storage_path=s3://mine/search/trials/000-full?endpoint_override=http://h:1'"
    )


def test_the_command_line_understands_the_command(tmp_path: Path):
    folder = tmp_path / "trials" / "000"
    folder.mkdir(parents=True)
    tried = with_overrides(load_preset("smoke"), {"optim.steps": 8, "run.dir": "elsewhere", "student.vision_width": 96})
    (folder / "config.yaml").write_text(to_yaml(tried))
    program, verb, *words = shlex.split(command("000", str(tmp_path), tmp_path, [trial("000", 0.5)]))
    (preset,), overrides = split(words)
    found = with_overrides(load_preset(preset), overrides)
    assert (program, verb) == ("sam3dist", "train")
    assert (found.optim.steps, found.run.dir, found.student.vision_width) == (80, f"{tmp_path}-000-full", 96)


def test_the_hypervolume_grows_as_trials_end():
    trials = [
        trial("000", 0.5, 10) | {"began": 1000.0, "wall_seconds": 7200.0},  # ends last
        trial("001", 0.2, 1, state="stopped") | {"began": 1000.0, "wall_seconds": 1800.0},
        trial("002", 0.4, 1) | {"began": 2800.0, "wall_seconds": 3600.0},
        trial("003", None, None, state="failed"),
    ]
    rows = progress(trials, "miou_all", 100.0)
    assert [(row["trial"], row["finished"], row["hours"]) for row in rows] == [
        ("001", 1, 0.5),
        ("002", 2, 1.5),
        ("000", 3, 2.0),
    ]
    # 002 beats 0.4 over two decades; 000 adds 0.1 over one.
    assert [row["hypervolume"] for row in rows] == pytest.approx([0, 0.4 * 2, 0.4 * 2 + 0.1 * log10(100 / 10)])


def test_trials_that_do_not_say_when_they_ran_keep_their_order():
    trials = [trial("000", 0.5) | {"began": 1.0, "wall_seconds": 9.0}, trial("001", 0.6)]
    rows = progress(trials, "miou_all", 100.0)
    assert [(row["trial"], row["hours"]) for row in rows] == [("000", 9 / 3600), ("001", None)]
    assert progress(trials, "miou_all", None) == []


def planted(count: int, seed: int = 0) -> list[dict]:
    """Trials whose quality follows from `a.gain` and whose size from `student.width`; the other knobs do nothing."""
    draw = random.Random(seed)
    trials = []
    for index in range(count):
        config = {
            "a.gain": draw.uniform(0, 1),
            "student.width": draw.choice([64, 128, 256]),
            "a.kind": draw.choice([None, "x", True]),
            "a.idle": draw.uniform(0.01, 10),
        }
        if config["a.kind"] is None:
            config["a.rare"] = draw.randint(1, 9)
        trials.append(trial(f"{index:03d}", config["a.gain"], config["student.width"], **config))
    return trials


def test_a_knob_that_decides_stands_out_and_idle_ones_do_not():
    rows = importances(planted(40), "miou_all")
    assert rows[0]["knob"] == "a.gain"
    by_knob = {row["knob"]: row for row in rows}
    assert by_knob.keys() == {"a.gain", "student.width", "a.kind", "a.idle", "a.rare"}
    assert sum(row["quality"] for row in rows) == pytest.approx(1)
    assert sum(row["size"] for row in rows) == pytest.approx(1)
    for kind, decides in (("quality", "a.gain"), ("size", "student.width")):
        assert {knob for knob, row in by_knob.items() if row[kind] > row[f"{kind}_by_chance"]} == {decides}


def test_of_few_trials_no_importance_is_told():
    few = planted(FEWEST - 1)
    assert importances(few, "miou_all") == []
    said = "Which knobs mattered is not shown: 7 trials are done, and of fewer than 8 only chance would speak."
    assert too_few(few) == said
    assert too_few([]).startswith("Which knobs mattered is not shown: no trial is done")
    assert too_few(planted(FEWEST)) == ""
    unmeasured = [*few, trial("100", float("nan")), trial("101", None)]
    assert importances(unmeasured, "miou_all") == []


def test_a_knob_that_never_varies_has_no_importance():
    same = [trial(f"{index}", index / 10, 1.0 + index, **{"a.same": 3, "a.text": "x"}) for index in range(10)]
    assert importances(same, "miou_all") == []


def test_an_empty_front_says_how_trials_ended_and_why():
    refused = {"state": "refused", "metrics": {}}
    trials = [
        refused | {"reason": "12.5 million parameters are above max_params_millions=10."},
        refused | {"reason": "31 million parameters are above max_params_millions=10."},
        {"state": "failed", "reason": "data.train: corrupt\nshard"},
        {"state": "stopped"},
    ]
    assert why_empty(trials) == (
        "The front is empty, because no trial was trained to its end: 2 refused, 1 failed, 1 stopped. "
        "Reasons: 2× 12.5 million parameters are above max_params_millions=10.; 1× data.train: corrupt shard"
    )
    assert "asha.enabled=false" in why_empty([{"state": "stopped"}])
    assert why_empty([]) == "The front is empty: no trial was started."
    nan = [trial("000", float("nan")), trial("001", None, state="failed")]
    assert why_empty(nan, "miou_all") == (
        "The front is empty, because no trial that was done has a finite miou_all: 1 done, 1 failed."
    )
    long = why_empty([{"state": "failed", "reason": "x" * 1000}])
    assert len(long) < 400
    assert long.endswith("…")


def test_a_report_gets_all_of_it(tmp_path: Path):
    report = search(tmp_path) | {"run_dir": "runs/s"}
    found = insights(report, tmp_path)
    assert found.keys() == {"recommended", "importances", "progress", "why_empty"}
    assert found["why_empty"] == ""
    assert found["progress"][-1]["hypervolume"] == pytest.approx(report["hypervolume"])
    assert len(found["importances"]) > 5
    commands = [row["command"] for row in found["recommended"] if row["trial"]]
    assert commands
    assert all(command.startswith("sam3dist train runs/s/trials/") for command in commands)
    empty = {"trials": [], "front": [], "objective": OBJECTIVE, "run_dir": "runs/s"}
    told = insights(empty, tmp_path)
    assert told["why_empty"] == "The front is empty: no trial was started."
    assert [row["command"] for row in told["recommended"]] == [None] * 4


def test_the_hypervolume_is_over_the_size_that_was_searched_for():
    """Of a search for megabytes a decade below the teacher's, whatever the parameters."""
    trial = {"trial": "000", "state": "done", "metrics": {"miou_all": 0.5}, "params_millions": 9.0, "size": 2.0}
    (row,) = progress([trial], "miou_all", 20.0)
    assert row["hypervolume"] == pytest.approx(0.5)
