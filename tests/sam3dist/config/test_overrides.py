import pickle

import pytest

from sam3dist.config.distill import DdpConfig, DeepSpeedConfig, DistillConfig, FsdpConfig
from sam3dist.config.load import with_overrides
from sam3dist.errors import ConfigError


def refusal(**overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        with_overrides(DistillConfig(), {key.replace("__", "."): value for key, value in overrides.items()})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_override_makes_a_new_configuration_and_leaves_the_old_one():
    before = DistillConfig()
    after = with_overrides(before, {"distillation.temperature": 6.0})
    assert (before.distillation.temperature, after.distillation.temperature) == (2.0, 6.0)
    assert after.optim == before.optim


@pytest.mark.parametrize(
    ("text", "read"), [("6", 6.0), ("6.5", 6.5), ("5e-1", 0.5), (".5", 0.5), ("1E1", 10.0), (" 2 ", 2.0)]
)
def test_text_from_a_command_line_becomes_a_number(text: str, read: float):
    assert with_overrides(DistillConfig(), {"distillation.temperature": text}).distillation.temperature == read


def test_a_whole_number_may_be_written_with_an_exponent():
    assert with_overrides(DistillConfig(), {"optim.steps": "2e4"}).optim.steps == 20000


def test_a_directory_named_like_a_number_stays_text():
    assert with_overrides(DistillConfig(), {"data.train": "2024"}).data.train == "2024"
    assert with_overrides(DistillConfig(), {"data.train": 2024}).data.train == "2024"
    assert with_overrides(DistillConfig(), {"name": "1e3"}).name == "1e3"


@pytest.mark.parametrize(
    "text", ["/data/set #2", "@scratch/x", "a: b", "[a", "{x}", "yes", "'quoted'", "*", "# 1", "nullable", "ünïcode"]
)
def test_a_path_is_taken_literally_whatever_it_means_to_yaml(text: str):
    for key in ("data.train", "name", "teacher.source"):
        section, _, field = key.rpartition(".")
        config = with_overrides(DistillConfig(), {key: text})
        assert getattr(getattr(config, section) if section else config, field) == text
    config = with_overrides(DistillConfig(), {"data": {"train": text}})
    assert config.data.train == text


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_text_is_refused_since_it_comes_from_an_unset_variable(text: str):
    assert refusal(data__train=text) == (
        "data.train= is empty, as from an unset shell variable; write null for none, or leave it out."
    )
    assert refusal(name=text).endswith("; write what it is, or leave it out.")


def test_nothing_is_no_text_where_some_is_needed():
    assert with_overrides(DistillConfig(), {"name": "null"}).name == "null"


@pytest.mark.parametrize("text", ["null", "none", "None", "~", "NULL"])
def test_nothing_can_be_written_in_several_ways(text: str):
    started = with_overrides(DistillConfig(), {"data.train": "shards"})
    assert with_overrides(started, {"data.train": text}).data.train is None


def test_a_list_may_be_written_with_commas_or_brackets():
    for text in ("vision,encoder", "[vision, encoder]", "vision, encoder"):
        config = with_overrides(DistillConfig(), {"distillation.features": text})
        assert config.distillation.features == ("vision", "encoder")
    assert with_overrides(DistillConfig(), {"distillation.features": "encoder"}).distillation.features == ("encoder",)
    assert with_overrides(DistillConfig(), {"run.loggers": ""}).run.loggers == ()


def test_a_mapping_sets_several_keys_of_a_section_and_keeps_the_others():
    config = with_overrides(DistillConfig(), {"distillation.task": "{mask: 7, dice: 3}"})
    assert (config.distillation.task.mask, config.distillation.task.dice) == (7, 3)
    assert config.distillation.task.presence == DistillConfig().distillation.task.presence


def test_a_misspelt_key_is_told_the_nearest_real_one():
    assert "did you mean distillation.temperature?" in refusal(distillation__temprature="6")
    assert "did you mean optim.learning_rate?" in refusal(optim__learningrate="6")
    assert "did you mean strategy.num_workers?" in refusal(strategy__num_worker="6")


def test_a_key_without_its_section_is_told_where_it_lives():
    assert "did you mean distillation.temperature?" in refusal(temperature="6")
    assert "did you mean distillation.task.dice?" in refusal(dice="6")


def test_a_key_like_nothing_is_told_the_sections():
    assert "must start with one of name, teacher, student" in refusal(zzqx="1")


def test_a_value_out_of_range_is_named_with_its_range():
    assert refusal(distillation__temperature="-1") == (
        "distillation.temperature=-1: must be a number above 0 and at most 100."
    )
    assert refusal(optim__steps="0") == "optim.steps=0: must be a whole number of at least 1."
    assert "of at least 28 and at most 2048, or null" in refusal(student__image_size="5")
    assert refusal(strategy__num_workers="0") == "strategy.num_workers=0: must be a whole number of at least 1."


def test_a_value_of_another_type_is_named_with_what_it_must_be():
    assert refusal(optim__steps="many") == "optim.steps=many: must be a whole number of at least 1."
    assert "optim.steps=2.5: must be a whole number" in refusal(optim__steps="2.5")
    assert "strategy.use_gpu=maybe: must be true or false" in refusal(strategy__use_gpu="maybe")
    assert "did you mean fp16?" in refusal(teacher__precision="fp15")
    assert "did you mean vision?" in refusal(distillation__features="visoin")


@pytest.mark.parametrize("value", ["nan", ".nan", "inf", ".inf", float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value: object):
    assert refusal(distillation__alpha=value).startswith("distillation.alpha=")


def test_several_wrong_values_are_counted():
    assert refusal(optim__steps="0", optim__accumulate="0").endswith("1 more such settings.")


def test_a_section_is_no_value_and_a_value_no_section():
    assert "strategy is a section; set one of strategy.kind" in refusal(strategy="fsdp")
    assert "data.train is a single value" in refusal(data__train__x="1")


def test_broken_yaml_names_the_key():
    assert refusal(run__loggers="[a").startswith("run.loggers=[a: not valid YAML")


def test_changing_the_kind_drops_what_only_the_old_kind_knows_and_keeps_the_rest():
    start = with_overrides(DistillConfig(), {"strategy.kind": "deepspeed", "strategy.zero_stage": "3"})
    start = with_overrides(start, {"strategy.num_workers": 4})
    assert start.strategy == DeepSpeedConfig(zero_stage=3, num_workers=4)
    fsdp = with_overrides(start, {"strategy.kind": "fsdp"})
    assert fsdp.strategy == FsdpConfig(num_workers=4)
    assert with_overrides(fsdp, {"strategy.kind": "ddp"}).strategy == DdpConfig(num_workers=4)


def test_the_kind_comes_first_wherever_it_is_written():
    config = with_overrides(DistillConfig(), {"strategy.zero_stage": "3", "strategy.kind": "deepspeed"})
    assert config.strategy == DeepSpeedConfig(zero_stage=3)
    config = with_overrides(DistillConfig(), {"strategy": {"zero_stage": 3, "kind": "deepspeed"}})
    assert config.strategy == DeepSpeedConfig(zero_stage=3)


def test_a_field_of_another_kind_says_which_kind_knows_it():
    assert "only known with strategy.kind=deepspeed" in refusal(strategy__zero_stage="3")
    assert "only known with strategy.kind=fsdp" in refusal(strategy__reshard_after_forward="true")
    assert "only known with" in refusal(strategy__kind="ddp", strategy__zero_stage="3")
    assert "only known with strategy.kind=fsdp or deepspeed; " in refusal(strategy__offload="true")


def test_a_name_that_means_something_else_in_the_new_kind_starts_anew():
    fsdp = with_overrides(DistillConfig(), {"strategy.kind": "fsdp", "strategy.offload": "true"})
    assert with_overrides(fsdp, {"strategy.kind": "deepspeed"}).strategy == DeepSpeedConfig()
    assert with_overrides(fsdp, {"strategy.kind": "fsdp"}).strategy == FsdpConfig(offload=True)


def test_only_zero_3_offloads_all():
    refused = refusal(strategy__kind="deepspeed", strategy__offload="all")
    assert refused.startswith("strategy.offload=all: zero_stage=2 keeps the weights whole on every worker; set ")
    allowed = {"strategy.kind": "deepspeed", "strategy.offload": "all", "strategy.zero_stage": "3"}
    assert with_overrides(DistillConfig(), allowed).strategy == DeepSpeedConfig(zero_stage=3, offload="all")
    assert with_overrides(DistillConfig(), allowed | {"strategy.offload": "none"}).strategy.offload is None


def test_an_unknown_kind_is_told_the_nearest():
    assert (
        refusal(strategy__kind="fdsp") == "strategy.kind=fdsp: must be one of ddp, fsdp, deepspeed; did you mean fsdp?"
    )


def test_a_refusal_survives_the_trip_between_processes():
    with pytest.raises(ConfigError) as caught:
        with_overrides(DistillConfig(), {"optim.steps": 0})
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (ConfigError, str(caught.value))


def test_a_weight_of_no_features_is_refused():
    assert "distillation.features is empty; name some, or set gamma=0" in refusal(distillation__features=())
    kept = with_overrides(DistillConfig(), {"distillation.features": [], "distillation.gamma": 0})
    assert kept.distillation.features == ()


@pytest.mark.parametrize("left", [{"distillation__gamma": 0}, {"distillation__features": ()}])
def test_a_run_without_any_loss_is_refused(left: dict[str, object]):
    said = refusal(distillation__alpha=0, distillation__beta=0, **left)
    assert said == "distillation.alpha, beta and gamma leave no loss to train on; set one of them above 0."
    features_alone = {"distillation.alpha": 0, "distillation.beta": 0}
    assert with_overrides(DistillConfig(), features_alone).distillation.gamma == 1
