import math

import pytest

from sam3dist.knobs import axis_of, keys_of, short_names


def test_keys_are_those_of_any_trial_in_the_order_in_which_they_appear():
    assert keys_of([{"config": {"b.x": 1}}, {"config": {"a.y": 1, "b.x": 2}}]) == ["b.x", "a.y"]


def test_names_are_as_short_as_tells_them_apart():
    names = short_names(["distillation.beta", "student.vision_width", "data.mask", "distillation.task.mask", "name"])
    assert list(names.values()) == ["beta", "vision width", "data mask", "task mask", "name"]
    assert short_names(["mask", "task.mask"]) == {"mask": "mask", "task.mask": "task mask"}


def test_numbers_lie_between_the_least_and_the_greatest():
    axis = axis_of([4, 8, 6, 8])
    assert [axis.place(value) for value in (4, 6, 8, None, "6")] == [0, 0.5, 1, None, None]
    assert axis.ticks() == [(0, "4"), (0.5, "6"), (1, "8")]


def test_numbers_far_apart_lie_by_their_logarithms():
    axis = axis_of([0.1, 10.0, 1.0])
    assert axis.log
    assert [axis.place(value) for value in (0.1, 1.0, 10.0)] == pytest.approx([0, 0.5, 1])
    assert not axis_of([0.0, 10.0]).log
    assert not axis_of([-1.0, 10.0]).log


def test_choices_stand_one_after_the_other_and_null_is_one():
    axis = axis_of([None, "clip", True, 3, "clip"])
    assert axis.values == ("3", "clip", "none", "yes")
    assert [axis.place(value) for value in (3, "clip", None, True)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert axis.place("lite") is None
    assert axis_of([True, False]).values == ("no", "yes")
    assert axis_of([1, math.nan]).numeric is False


def test_one_value_lies_in_the_middle():
    assert axis_of([5]).place(5) == 0.5
    assert axis_of(["a"]).place("a") == 0.5
    assert axis_of([]).ticks() == []


def test_ticks_of_many_numbers_are_few_and_those_of_near_ones_are_left_out():
    assert axis_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).ticks() == [(0, "1"), (0.5, "4"), (1, "7")]
    assert [label for _, label in axis_of([1, 2, 100, 1000]).ticks()] == ["1", "2", "100", "1,000"]
    assert [label for _, label in axis_of([100, 101, 500]).ticks()] == ["100", "500"]
