"""What the presets and spaces that ship ask for can be built, and is as large as they say."""

import re
from pathlib import Path

import pytest
from transformers import Sam3Config

from sam3dist.config.load import PRESETS, ends, load_preset, load_search, with_overrides
from sam3dist.models.size import ModelSize, model_size
from sam3dist.models.student import student_config

SPACES = Path(__file__).resolve().parents[3] / "search_spaces"


def size_of(preset: str) -> ModelSize:
    return model_size(student_config(load_preset(preset).student, Sam3Config()))


@pytest.mark.parametrize("preset", ["base", "medium", "lite", "small", "mobile"])
def test_a_student_of_sam3_has_the_size_its_preset_says(preset: str):
    said = re.search(r"\((\d+) M", (PRESETS / f"{preset}.yaml").read_text())
    assert said is not None
    assert size_of(preset).params_millions == pytest.approx(float(said[1]), abs=1)


def test_the_mobile_student_fits_in_fifty_megabytes():
    assert size_of("mobile").megabytes["int8"] < 50


@pytest.mark.parametrize("space", ["quick", "full"])
def test_every_end_of_a_space_can_be_built_from_sam3(space: str):
    search = load_search(SPACES / f"{space}.yaml")
    shapes = {key: span for key, span in search.space.items() if key.startswith("student.")}
    assert shapes
    for key, span in shapes.items():
        for value in ends(span):
            student_config(with_overrides(search.base(), {key: value}).student, Sam3Config())


def test_the_search_on_a_small_machine_needs_two_cpus():
    search = load_search(SPACES / "smoke.yaml")
    strategy = search.base().strategy
    drivers = 0.1
    asked = search.max_concurrent * (strategy.num_workers * strategy.cpus_per_worker + drivers)
    assert asked <= search.base().run.num_cpus == 2
