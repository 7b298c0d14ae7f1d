"""Pictures are judged by eye; here is what can be told without: what they say, and which colours they hold."""

from __future__ import annotations

from math import nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3dist.plots import GREY, MOST_NAMED, SERIES, STUDENT, TEACHER, curves, pareto_plot, trial_curves
from sam3dist.visualize import FALSE, FOUND, MISSED, six_panels
from sam3dist.visualize import _object_colors as object_colors
from sam3dist.visualize import _shares as shares


def region(rows: slice, columns: slice, size: tuple[int, int] = (60, 90)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return mask


UP, DOWN, RIGHT = (region(*box) for box in ((np.s_[:20], np.s_[:30]), (np.s_[40:], np.s_[:30]), (np.s_[:], np.s_[60:])))


def share_of(path: Path, color: str, tolerance: int = 24) -> float:
    """The share of pixels within `tolerance` of a colour in each channel."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    ink = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(pixels - ink) <= tolerance).all(axis=2).mean())


def panels(path: Path, **changes: object) -> Path:
    given = {"truth": [UP, DOWN], "teacher": [UP, DOWN], "student": [UP, RIGHT], "phrase": "blue box", "crowd": None}
    return six_panels(np.full((60, 90, 3), 128, dtype=np.uint8), path=path, **{**given, **changes})


def test_difference_panel_shows_found_false_and_missed(tmp_path):
    wrong = panels(tmp_path / "deep" / "wrong.png")
    right = panels(tmp_path / "right.png", student=[UP, DOWN])
    width, height = Image.open(wrong).size
    assert width > 1000
    assert height > 600
    # A sixth of the figure is the panel; found, false and missed are 1/9, 1/3 and 1/9 of it. The legend adds some.
    assert 0.005 < share_of(wrong, FOUND) < 0.05
    assert 0.02 < share_of(wrong, FALSE) < 0.08
    assert share_of(wrong, MISSED) > 20 * share_of(right, MISSED) > 0
    assert share_of(right, FALSE) < 0.002


def test_panels_of_nothing_and_of_crowds_are_drawn(tmp_path):
    empty = panels(tmp_path / "empty.png", truth=[], teacher=[], student=[])
    assert share_of(empty, FALSE) < 0.002
    long_phrase = panels(tmp_path / "crowd.png", crowd=RIGHT, phrase="a phrase " * 20)
    assert share_of(long_phrase, FALSE) < 0.002  # all that is false lies in the crowd


def test_words_under_the_titles_are_counted_in_parts_of_the_truth():
    truth = UP | DOWN  # 1200 pixels
    assert shares(UP | RIGHT, truth) == "50% found, 50% missed, 150% too much"
    assert shares(np.zeros_like(UP), np.zeros_like(UP)) == "nothing to find"
    assert shares(RIGHT, np.zeros_like(UP)) == "nothing to find; 33% of the image is false"


def test_an_object_has_the_same_colour_in_every_panel():
    truth, teacher, student = object_colors([UP, DOWN], [DOWN, RIGHT], [RIGHT, UP, DOWN])
    assert (teacher[0] == truth[1]).all()
    assert (student[1] == truth[0]).all()
    assert (student[2] == truth[1]).all()
    assert (teacher[1] == student[0]).all()  # no true instance, but the same for both
    assert len({tuple(color) for color in (*truth, teacher[1])}) == 3


def trial(name: str, size: float, quality: float | None, state: str = "complete") -> dict:
    metrics = None if quality is None else {"miou_all": quality}
    return {"trial": name, "state": state, "params_millions": size, "metrics": metrics}


def test_pareto_plot_colours_the_front_and_stars_the_teacher(tmp_path):
    trials = [trial("a", 1, 0.3), trial("b", 2, 0.5), trial("c", 3, 0.4), trial("d", 2.5, 0.2, "stopped")]
    trials += [trial("e", 1, None, "failed"), trial("f", 1, nan)]
    teacher = {"metrics": {"miou_all": 0.6}, "params_millions": 4.0}
    with_front = pareto_plot(trials, ["a", "b"], quality="miou_all", path=tmp_path / "a.png", teacher=teacher)
    without = pareto_plot(trials, [], quality="miou_all", path=tmp_path / "b.png")
    assert share_of(with_front, STUDENT) > 0.0002
    assert share_of(with_front, TEACHER) > 0.0001
    assert share_of(without, STUDENT) == share_of(without, TEACHER) == 0


@pytest.mark.parametrize("trials", [[], [trial("only", 1.5, 0.5)]])
def test_pareto_plot_of_few_trials_is_drawn(tmp_path, trials):
    path = pareto_plot(trials, [t["trial"] for t in trials], quality="miou_all", path=tmp_path / "few.png")
    assert (share_of(path, STUDENT) > 0) == bool(trials)


def test_trials_are_drawn_over_their_steps_the_best_in_colours_of_their_own(tmp_path):
    def evaluations(top: float) -> list[dict]:
        return [{"step": step, "kind": "eval", "miou_all": top * step / 60, "dice": 1.0} for step in (0, 30, 60)]

    names = [f"{number:03d}" for number in range(MOST_NAMED + 1)]
    histories = {name: evaluations(0.9 - 0.05 * place) for place, name in enumerate(names)}
    trials = [trial(name, 1, 0.5) for name in names]
    one = trial_curves(trials, {"000": histories["000"]}, quality="miou_all", path=tmp_path / "one.png")
    assert [share_of(one, color) > 0 for color in SERIES] == [True] + [False] * (len(SERIES) - 1)
    many = trial_curves(trials, histories, quality="miou_all", path=tmp_path / "many.png")
    assert all(share_of(many, color) > 0 for color in SERIES)
    del histories[names[-1]]
    named = trial_curves(trials, histories, quality="miou_all", path=tmp_path / "named.png")
    assert share_of(many, GREY) > share_of(named, GREY) + 0.0005  # the one too many is drawn in grey
    none = trial_curves(trials, histories, quality="presence_f1", path=tmp_path / "none.png")
    assert all(share_of(none, color) == 0 for color in SERIES)


def test_curves_leave_out_null_and_terms_that_are_off(tmp_path):
    train = [
        {"step": step, "kind": "train", "loss/total": 9.0 / step, "loss/feature": 0.0, "loss/task": None}
        for step in range(10, 60, 10)
    ]
    evaluations = [{"step": step, "kind": "eval", "miou_all": step / 60, "dice": None} for step in (0, 30, 60)]
    one_each = curves(train + evaluations, path=tmp_path / "one.png", title="run")
    more = [{**line, "loss/task": 1.0, "dice": 0.5} for line in train + evaluations]
    two_each = curves(more, path=tmp_path / "two.png")
    # The first line of each side is blue, the second orange.
    assert share_of(one_each, TEACHER) > 0
    assert share_of(one_each, STUDENT) == 0
    assert share_of(two_each, STUDENT) > 0
    assert curves([], path=tmp_path / "none.png").stat().st_size > 0
