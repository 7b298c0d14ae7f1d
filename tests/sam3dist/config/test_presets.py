"""What the presets and spaces that ship ask for can be built, and is as large as they say."""

import re
import tomllib
from pathlib import Path

import pytest
from transformers import Sam3Config

import sam3dist
from sam3dist.config.load import PRESETS, ends, load_preset, load_search, with_overrides
from sam3dist.models.size import ModelSize, model_size
from sam3dist.models.student import student_config
from sam3dist.verbs import smoke

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


def test_the_smoke_verb_searches_the_space_people_read_from_inside_the_package():
    """A wheel holds the package only, and of its YAML what pyproject.toml names."""
    package = Path(sam3dist.__file__).resolve().parent
    assert smoke.SPACE.resolve() == (SPACES / "smoke.yaml").resolve()
    data = tomllib.loads((SPACES.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert smoke.SPACE in {path for pattern in data["sam3dist"] for path in package.glob(pattern)}


def test_the_search_on_a_small_machine_needs_two_cpus():
    search = load_search(SPACES / "smoke.yaml")
    strategy = search.base().strategy
    drivers = 0.1
    asked = search.max_concurrent * (strategy.num_workers * strategy.cpus_per_worker + drivers)
    assert asked <= search.base().run.num_cpus == 2
