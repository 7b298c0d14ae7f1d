from __future__ import annotations

import random
from itertools import combinations

import pytest

from sam3dist.models.layers import best_layers, even_layers, global_layers, vision_layers

SAM3 = [7, 15, 23, 31]


def test_even_layers_keep_first_and_last():
    assert even_layers(6, 4) == [0, 2, 3, 5]
    assert even_layers(24, 2) == [0, 23]
    assert even_layers(6, 6) == [0, 1, 2, 3, 4, 5]
    assert even_layers(6, 1) == [0]
    assert even_layers(2, 3) == [0, 0, 1]


@pytest.mark.parametrize(
    ("depth", "places"),
    [(32, SAM3), (28, [6, 13, 20, 27]), (24, [5, 17, 23]), (16, [7, 15]), (8, [7]), (3, [2]), (1, [0])],
)
def test_global_layers_stay_in_proportion(depth, places):
    assert global_layers(32, SAM3, depth) == places


@pytest.mark.parametrize("depth", range(1, 33))
def test_a_shallower_vision_tower_takes_each_kind_of_layer_from_its_kind_in_order(depth):
    places = global_layers(32, SAM3, depth)
    sources = vision_layers(32, SAM3, depth, places)
    assert len(sources) == depth
    assert sources == sorted(set(sources))
    assert [source in SAM3 for source in sources] == [layer in places for layer in range(depth)]
    assert sources[-1] == 31
    if depth > 8:
        assert sources[0] == 0


def test_half_of_sam3_takes_every_second_window_between_its_global_layers():
    sources = vision_layers(32, SAM3, 16, [7, 15])
    assert sources == [0, 2, 4, 6, 10, 12, 14, 15, 16, 18, 20, 22, 26, 28, 30, 31]


def test_a_deeper_copy_repeats_layers():
    assert vision_layers(2, [1], 4, [3]) == [0, 0, 0, 1]


def test_the_best_layers_are_those_of_a_search_through_all_choices():
    generator = random.Random(0)
    for _ in range(50):
        scores = [generator.random() for _ in range(7)]
        kinds = [generator.random() < 0.4 for _ in range(7)]
        wanted = [generator.random() < 0.4 for _ in range(generator.randint(1, 4))]
        choices = [c for c in combinations(range(7), len(wanted)) if [kinds[layer] for layer in c] == wanted]
        best = max((list(c) for c in choices), key=lambda c: sum(scores[layer] for layer in c), default=None)
        assert best_layers(scores, kinds, wanted) == best
