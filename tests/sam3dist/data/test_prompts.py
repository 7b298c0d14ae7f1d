from random import Random

import pytest

from sam3dist.data.prompts import clean_category, clean_phrase, draw_prompts
from sam3dist.data.rejects import Reject
from sam3dist.data.rows import Prompt


def prompts(positives: int, negatives: int) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"{'yes' if present else 'no'} {index}", present, True, (), None)
        for present, count in ((True, positives), (False, negatives))
        for index in range(count)
    )


def drawn(positives: int, negatives: int, wanted: int, share: float, rounds: int = 4000) -> list[list[Prompt]]:
    rng = Random(0)
    asked = prompts(positives, negatives)
    return [draw_prompts(asked, wanted, share, rng) for _ in range(rounds)]


@pytest.mark.parametrize(("positives", "negatives"), [(9, 9), (4, 20), (1, 8), (2, 2)])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.33, 0.5])
def test_the_share_of_negatives_is_the_wanted_one_while_there_are_enough(positives: int, negatives: int, share: float):
    rounds = drawn(positives, negatives, 4, share)
    absent = sum(not prompt.present for chosen in rounds for prompt in chosen)
    total = sum(len(chosen) for chosen in rounds)
    assert absent / total == pytest.approx(share, abs=0.02)
    assert max(len(chosen) for chosen in rounds) <= 4


@pytest.mark.parametrize(
    ("positives", "negatives", "share", "expected"),
    [
        (0, 9, 0.25, (0, 1)),  # only negatives: no more than its share of the step
        (9, 0, 0.5, (4, 0)),
        (9, 9, 1.0, (0, 4)),
        (9, 9, 0.0, (4, 0)),
        (0, 9, 0.0, (0, 0)),
        (3, 0, 1.0, (3, 0)),
        (9, 1, 0.5, (3, 1)),
    ],
)
def test_one_kind_stands_in_for_the_other_where_it_is_missing(
    positives: int, negatives: int, share: float, expected: tuple[int, int]
):
    for chosen in drawn(positives, negatives, 4, share, rounds=50):
        present = sum(prompt.present for prompt in chosen)
        assert (present, len(chosen) - present) == expected


def test_no_phrase_is_drawn_twice():
    for chosen in drawn(3, 3, 5, 0.4, rounds=200):
        assert len({prompt.phrase for prompt in chosen}) == len(chosen)


def test_the_hardest_negatives_come_most_often_and_every_one_sometimes():
    rounds = drawn(4, 6, 2, 0.5)
    counts = [sum(prompt.phrase == f"no {i}" for chosen in rounds for prompt in chosen) for i in range(6)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == pytest.approx(sum(counts) / (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 6), rel=0.1)
    assert counts[-1] > 0


def test_positives_are_drawn_evenly():
    rounds = drawn(4, 0, 1, 0.0)
    counts = [sum(chosen[0].phrase == f"yes {i}" for chosen in rounds) for i in range(4)]
    assert min(counts) > 900


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("traffic_light", "traffic light"),
        ("  Wine \n glass ", "wine glass"),
        ("bow_(weapon)", "bow"),
        ("T-shirt", "t-shirt"),
        ("(unknown)", "(unknown)"),
        ("cafe\u0301", "café"),
    ],
)
def test_category_names_become_phrases(name: str, phrase: str):
    assert clean_category(name, 200) == phrase


def test_phrases_keep_their_case_and_lose_their_line_breaks():
    assert clean_phrase(" the  Red\ncar ", 200) == "the Red car"


def test_a_phrase_of_just_the_limit_passes():
    assert clean_phrase("a" * 20, 20) == "a" * 20
    with pytest.raises(Reject):
        clean_phrase("a" * 21, 20)
