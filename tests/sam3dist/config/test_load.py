from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from sam3dist.config import distill, keys, search, space
from sam3dist.config.base import Settings
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import load_preset, load_search, presets, to_yaml, with_overrides, with_search_overrides
from sam3dist.config.plain import plain
from sam3dist.config.search import SearchConfig
from sam3dist.config.space import Uniform
from sam3dist.errors import ConfigError

SPACES = Path(__file__).resolve().parents[3] / "search_spaces"


def written(directory: Path, text: str, name: str = "mine.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["smoke", "base", "lite", "small", "medium", "mobile"])
def test_every_preset_loads_under_its_name_and_says_what_it_is_for(name: str):
    assert load_preset(name).name == name
    assert len(presets()[name]) > 20


def test_presets_have_the_students_their_names_promise():
    student = load_preset("lite").student
    assert (student.vision_width, student.vision_depth) == (768, 24)
    assert (student.encoder_layers, student.decoder_layers) == (4, 4)
    assert load_preset("small").student.vision_width == 512
    assert load_preset("mobile").student.image_size == 504
    assert load_preset("smoke").teacher.source == "embedded"
    assert all(load_preset(name).teacher.source == "facebook/sam3" for name in presets() if name != "smoke")


def test_a_misspelt_preset_is_told_the_nearest():
    with pytest.raises(ConfigError, match=r"smal: no such preset; did you mean small\?"):
        load_preset("smal")
    with pytest.raises(ConfigError, match="use one of base, efficientvit"):
        load_preset("zzz")


def test_a_file_is_named_in_what_is_wrong_with_it(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"mine.yaml: optim.stepz: .* did you mean optim.steps"):
        load_preset(written(tmp_path, "optim: {stepz: 5}"))
    with pytest.raises(ConfigError, match=r"mine.yaml: not valid YAML in line 2"):
        load_preset(written(tmp_path, "name: a\nb: }\n"))
    with pytest.raises(ConfigError, match=r"holds no settings"):
        load_preset(written(tmp_path, "- a\n- b\n"))
    with pytest.raises(ConfigError, match=r"gone.yaml: cannot be read"):
        load_preset(tmp_path / "gone.yaml")


def test_a_file_without_a_name_is_named_after_itself(tmp_path: Path):
    assert load_preset(written(tmp_path, "optim: {steps: 5}", "birds.yaml")).name == "birds"


@pytest.mark.parametrize("comments", [False, True])
@pytest.mark.parametrize("name", ["smoke", "mobile", "base"])
def test_yaml_gives_the_same_configuration_back(name: str, comments: bool, tmp_path: Path):
    config = with_overrides(load_preset(name), {"optim.learning_rate": "5e-4", "data.train": "2024"})
    assert load_preset(written(tmp_path, to_yaml(config, comments))) == config


def test_yaml_holds_every_value_resolved():
    tree = yaml.safe_load(to_yaml(load_preset("smoke")))
    assert tree == load_preset("smoke").model_dump(mode="json")


def test_commented_yaml_tells_what_a_setting_does_and_what_it_may_be():
    text = to_yaml(load_preset("smoke"), comments=True)
    words = " ".join(text.replace("# ", "").split())
    for told in (
        "before they are compared; 1 leaves them unchanged. Above 0 and at most 100. temperature: 2.0",
        "Images per worker and step. At least 1 and at most 1024. images_per_batch: 8",
        "Layers of the text encoder. At least 1 and at most 48, or null. text_depth: null",
        "Which features of the teacher the student imitates. A list, each one of vision, encoder. features:",
        "How the workers share the student. One of ddp, fsdp, deepspeed. kind: ddp",
        "One GPU for each worker. use_gpu: false",
    ):
        assert told in words
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("module", [distill, search, space])
def test_every_section_and_every_setting_says_what_it_is(module: ModuleType):
    sections = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Settings)]
    settings = [(each, name, field) for each in sections for name, field in each.model_fields.items()]
    assert settings
    assert [each.__name__ for each in sections if not each.__doc__] == []
    assert [
        f"{each.__name__}.{name}"
        for each, name, field in settings
        if keys.section(field.annotation) is None and not field.description
    ] == []


def test_plain_objects_have_the_same_attributes(tmp_path: Path):
    config = with_overrides(load_preset("mobile"), {"strategy.kind": "fsdp", "optim.learning_rate": 5e-4})

    def compare(tree: object, model: object) -> None:
        if isinstance(tree, SimpleNamespace):
            for name, value in vars(tree).items():
                compare(value, getattr(model, name))
        else:
            assert tree == model
            assert type(tree) is type(model)

    compare(plain(to_yaml(config)), config)
    compare(plain(written(tmp_path, to_yaml(config))), config)


@pytest.mark.parametrize("name", ["smoke", "quick", "distillation", "architecture", "full", "mobile", "photos"])
def test_every_search_space_loads_and_each_trial_it_can_draw_is_valid(name: str):
    search = load_search(SPACES / f"{name}.yaml")
    assert search.name == name
    assert isinstance(search.base(), DistillConfig)


def test_a_search_takes_keys_of_its_own_and_of_its_trials():
    search = load_search(SPACES / "smoke.yaml")
    changed = with_search_overrides(
        search, {"trials": "2", "asha.enabled": "no", "data.train": "x", "optim.steps": "7"}
    )
    assert (changed.trials, changed.asha.enabled) == (2, False)
    assert (changed.base().data.train, changed.base().optim.steps) == ("x", 7)
    assert changed.base().eval == search.base().eval


def test_startup_trials_are_for_samplers_with_a_model(tmp_path: Path):
    smoke = load_search(SPACES / "smoke.yaml")
    assert smoke.startup_trials == 2
    drawn = with_search_overrides(smoke, {"sampler": "random"})
    assert drawn.startup_trials is None
    assert SearchConfig.model_validate(yaml.safe_load(to_yaml(drawn))) == drawn
    assert with_search_overrides(drawn, {"sampler": "gp"}).startup_trials == 8
    told = r"startup_trials=4: has no effect with sampler=random.*leave it out"
    with pytest.raises(ConfigError, match=rf"^{told}"):
        with_search_overrides(smoke, {"sampler": "random", "startup_trials": "4"})
    space = "preset: smoke\nspace: {distillation.temperature: {uniform: [1, 2]}}\n"
    assert load_search(written(tmp_path, space)).startup_trials == 8
    with pytest.raises(ConfigError, match=rf"mine.yaml: {told}"):
        load_search(written(tmp_path, space + "sampler: random\nstartup_trials: 4"))


def test_a_range_can_be_set_from_the_command_line():
    search = load_search(SPACES / "smoke.yaml")
    changed = with_search_overrides(search, {"space.distillation.temperature": "{uniform: [1, 2]}"})
    assert changed.space["distillation.temperature"] == Uniform(uniform=(1, 2))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("trails", "2", "did you mean trials"),
        ("data.tran", "x", "did you mean data.train"),
        ("trials", "0", "trials=0: must be a whole number of at least 1"),
        ("optim.steps", "0", "optim.steps=0"),
        ("space.student.width", "{choice: [8]}", "student.width: no such key"),
        ("space.student.vision_width", "{choice: [3]}", "student.vision_width=3: must be"),
        ("space.student.vision_width", "{chioce: [64]}", "space.student.vision_width: must be {choice"),
        ("space.distillation.temperature", "{uniform: [8, 1]}", "lower bound 8"),
        ("space.distillation.temperature", "{loguniform: [0, 1]}", "above 0"),
        ("seeds", "[{student.vision_widht: 64}]", "did you mean student.vision_width"),
    ],
)
def test_a_wrong_search_override_names_key_and_way_out(key: str, value: str, told: str):
    with pytest.raises(ConfigError) as caught:
        with_search_overrides(load_search(SPACES / "smoke.yaml"), {key: value})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_file_is_named_in_what_is_wrong_with_it(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such search space"):
        load_search(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"mine.yaml: space: missing"):
        load_search(written(tmp_path, "preset: smoke"))
    with pytest.raises(ConfigError, match=r"mine.yaml: .*distillation.temprature.*did you mean"):
        load_search(written(tmp_path, "preset: smoke\nspace: {distillation.temprature: {uniform: [1, 2]}}"))
