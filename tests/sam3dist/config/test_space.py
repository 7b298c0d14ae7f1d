"""Ranges, conditions and remainders of a search space."""

from typing import Any

import pytest

from sam3dist.config.load import with_search_overrides
from sam3dist.config.search import SearchConfig
from sam3dist.config.space import Choice, Remainder, Uniform, draw
from sam3dist.errors import ConfigError

ALPHA, BETA = "distillation.alpha", "distillation.beta"
BACKBONE, WIDTH = "student.backbone", "student.vision_width"


def first(_: str, span: Any) -> Any:
    """What a sampler that always takes the first value answers."""
    return span.choice[0] if isinstance(span, Choice) else span.uniform[0]


def search(space: dict[str, Any], **settings: Any) -> SearchConfig:
    """As from a file: checked against the run that it starts from."""
    return with_search_overrides(SearchConfig.model_validate({"preset": "smoke", "space": space, **settings}), {})


def test_a_remainder_is_what_the_other_leaves_of_one():
    space = {ALPHA: Uniform(uniform=(0.3, 0.9)), BETA: Remainder(one_minus=ALPHA)}
    assert draw(space, first) == {ALPHA: 0.3, BETA: 0.7}


def test_a_key_is_asked_only_where_its_condition_holds():
    width = {"choice": [64, 96], "when": {BACKBONE: None}}
    neck = {"choice": ["sam3"], "when": {BACKBONE: ["repvit_m1_1", "fastvit_t8"]}}
    keys = {WIDTH: width, "student.neck": neck}
    for backbone, met in ((None, {WIDTH: 64}), ("repvit_m1_1", {"student.neck": "sam3"}), ("tiny_vit_5m_224", {})):
        others = [name for name in ("repvit_m1_1", "fastvit_t8", None) if name != backbone]
        found = search({BACKBONE: {"choice": [backbone, *others]}, **keys})
        assert draw(found.space, first) == {BACKBONE: backbone, **met}


def test_conditions_may_follow_from_each_other():
    choose = {"choice": [1, 2]}
    space = {
        "student.vision_depth": choose,
        "student.encoder_layers": {**choose, "when": {"student.vision_depth": 2}},
        "student.decoder_layers": {**choose, "when": {"student.encoder_layers": [1, 2]}},
    }
    assert draw(search(space).space, first) == {"student.vision_depth": 1}


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({BETA: {"one_minus": ALPHA}, ALPHA: {"uniform": [0, 1]}}, "must be a range that stands before it"),
        ({ALPHA: {"uniform": [0, 2]}, BETA: {"one_minus": ALPHA}}, "is not from 0 to 1"),
        ({WIDTH: {"choice": [64], "when": {BACKBONE: None}}}, f"space.{WIDTH}.when.{BACKBONE}: must be a key that"),
        (
            {BACKBONE: {"choice": [None]}, WIDTH: {"choice": [64], "when": {BACKBONE: "repvit"}}},
            f"space.{WIDTH}.when.{BACKBONE}=repvit: is none of its choices; use None.",
        ),
        ({ALPHA: {"uniform": [0.9, 0.1]}}, "the lower bound 0.9 is above"),
        ({ALPHA: {"loguniform": [0, 1]}}, "loguniform needs a lower bound above 0"),
    ],
)
def test_a_space_that_makes_no_sense_is_a_mistake_of_one_line(space: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=None) as caught:
        search(space)
    assert told in str(caught.value)


def test_a_seed_cannot_set_what_follows_from_another_key():
    space = {ALPHA: {"uniform": [0, 1]}, BETA: {"one_minus": ALPHA}}
    with pytest.raises(ConfigError, match=r"seeds\[0\].distillation.beta: follows from another key"):
        search(space, seeds=[{ALPHA: 0.5, BETA: 0.5}])


def test_a_limit_of_latency_needs_somebody_who_measures_it():
    space = {ALPHA: {"uniform": [0, 1]}}
    with pytest.raises(ConfigError, match=r"max_latency_ms=50: nobody measures it"):
        search(space, max_latency_ms=50)
    search(space, max_latency_ms=50, overrides={"objective.size": "latency_ms"})
