"""What the presets and spaces that ship ask for can be built, and is as large as they say."""

import re
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import Sam3Config

import sam3dist
from sam3dist.config.distill import StudentSpec
from sam3dist.config.load import PRESETS, load_preset, load_search, presets, with_overrides
from sam3dist.config.space import Space, draw, ends
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.size import ModelSize, model_size
from sam3dist.models.student import student_config
from sam3dist.models.teacher import teacher_config
from sam3dist.verbs import smoke
from tests.sam3dist.runs import pupil_of, run, settings

SPACES = Path(__file__).resolve().parents[3] / "search_spaces"


def size_of(preset: str) -> ModelSize:
    return model_size(student_config(load_preset(preset).student, Sam3Config()))


@pytest.mark.parametrize("preset", sorted(set(presets()) - {"smoke"}))
def test_a_student_of_sam3_has_the_size_its_preset_says(preset: str):
    said = re.search(r"\((\d+) M", (PRESETS / f"{preset}.yaml").read_text())
    assert said is not None
    assert size_of(preset).params_millions == pytest.approx(float(said[1]), abs=0.6)


@pytest.mark.parametrize(
    ("preset", "precision"), [("mobile", "int8"), ("repvit", "int8"), ("efficientvit", "int8"), ("tinyvit", "int4")]
)
def test_a_student_for_phones_fits_in_fifty_megabytes(preset: str, precision: str):
    assert size_of(preset).megabytes[precision] < 50


def test_presets_reach_from_five_megabytes_to_a_gigabyte():
    assert size_of("nano").megabytes["int4"] < 6
    assert 950 < size_of("medium").megabytes["fp16"] < 1050


SMALLEST = {
    "repvit": "repvit_m0_9",
    "tiny_vit": "tiny_vit_5m_224",
    "efficientvit": "efficientvit_b0",
    "mobilenetv4": "mobilenetv4_conv_small_050",
    "fastvit": "fastvit_t8",
}
"""Of each family of timm that a preset takes its backbone from."""


def reduced(spec: StudentSpec) -> dict[str, Any]:
    """The settings of a student of the same families that two steps on a CPU can train."""
    small: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 4, "detr_width": 16}
    small |= {"neck": spec.neck, "text_tower": spec.text_tower}
    if spec.backbone is None:
        small |= {"image_size": 56, "vision_width": 16, "vision_depth": 1}
    else:
        family = next(name for name in SMALLEST if spec.backbone.startswith(name))
        small |= {"image_size": 64, "backbone": SMALLEST[family], "vision_depth": None}
    if spec.text_tower in (None, "clip"):
        small |= {"text_width": 16, "text_depth": 1}
    elif spec.text_tower in ("lite", "repmixer"):
        small |= {"text_width": 64, "text_depth": 3}
    return small


@pytest.mark.parametrize("preset", presets())
def test_a_reduced_form_of_every_preset_trains(preset: str, tiny_teacher: Segmenter, tmp_path: Path):
    """Two real steps: all losses finite, else the loop raises, and every weight that trains has moved.

    But for biases that add as much to all logits of a softmax: their gradient is zero but for rounding.
    """
    student = reduced(load_preset(preset).student)
    # Unclipped: a small weight's share of a clipped gradient can be too small to move it.
    optim = {"steps": 2, "warmup_steps": 1, "weight_decay": 0.0, "clip_grad_norm": 1e9}
    config = settings(student=student, optim=optim)
    pupil = pupil_of(tiny_teacher, config)
    before = {name: value.detach().clone() for name, value in pupil.named_parameters()}
    report, _ = run(config, tiny_teacher, tmp_path, pupil=pupil)
    assert report.step == 2
    for name, value in pupil.named_parameters():
        if not name.endswith("k_proj.bias") and not ("box_rpb_embed" in name and name.endswith("layer2.bias")):
            assert torch.equal(value, before[name]) != value.requires_grad, name


def drawn(space: Space, generator: Random) -> dict[str, Any]:
    """A random point of a space, each end of a range as likely as all between."""
    return draw(space, lambda _, span: generator.choice(ends(span)))


@pytest.mark.parametrize("name", ["quick", "distillation", "architecture", "full", "mobile", "photos", "smoke"])
def test_what_a_space_suggests_can_be_built(name: str):
    search = load_search(SPACES / f"{name}.yaml")
    base, generator = search.base(), Random(0)
    teacher = Sam3Config() if base.teacher.source == "facebook/sam3" else teacher_config(base.teacher.source)
    points = [drawn(search.space, generator) for _ in range(12)]
    for values in [*search.seeds, *points]:
        student_config(with_overrides(base, values).student, teacher)


@pytest.mark.parametrize("name", ["quick", "distillation", "full", "mobile"])
def test_a_search_starts_from_what_is_recommended_and_its_weights_add_up_to_one(name: str):
    search = load_search(SPACES / f"{name}.yaml")
    first = with_overrides(search.base(), search.seeds[0]).distillation
    assert (first.temperature, first.alpha, first.gamma) == (4.0, 0.5, 0.0)
    for seed in range(5):
        values = drawn(search.space, Random(seed))
        assert values["distillation.alpha"] + values["distillation.beta"] == pytest.approx(1)


def test_students_for_phones_are_held_to_fifty_megabytes():
    search = load_search(SPACES / "mobile.yaml")
    assert (search.max_megabytes, search.base().objective.precision) == (50, "int4")
    first = student_config(with_overrides(search.base(), search.seeds[0]).student, Sam3Config())
    assert model_size(first).megabytes["int4"] < 50


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
    asked = (search.max_concurrent or 1) * (strategy.num_workers * strategy.cpus_per_worker + drivers)
    assert asked <= search.base().run.num_cpus == 2
