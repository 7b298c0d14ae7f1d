"""What FSDP takes for a unit, and how shards go with half precision, recomputed layers and the CPU's memory."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import AdamW
from transformers import Sam3Config, Sam3Model

from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import SHARDABLE, Segmenter
from sam3dist.strategies.protocol import make_strategy
from tests.sam3dist.runs import assert_same_weights, pupil_of, run, settings, simple_loss
from tests.sam3dist.strategies.test_strategies import config_of, trainable
from tests.sam3dist.strategies.two_ranks import OFFLOADED


def layers_of(net: nn.Module) -> list[nn.Module]:
    """Every layer of the four towers and stacks, found by where it is and not by its class."""
    stacks = (
        net.vision_encoder.backbone.layers,
        net.text_encoder.text_model.encoder.layers,
        net.detr_encoder.layers,
        net.detr_decoder.layers,
    )
    return [layer for stack in stacks for layer in stack]


def test_every_layer_of_sam3_is_a_unit_and_they_hold_nearly_all_of_its_weights():
    with torch.device("meta"):
        net = Sam3Model(Sam3Config())
    layers = layers_of(net)
    assert Counter(type(layer).__name__ for layer in layers) == {
        "Sam3ViTLayer": 32,
        "CLIPEncoderLayer": 24,
        "Sam3DetrEncoderLayer": 6,
        "Sam3DetrDecoderLayer": 6,
    }
    assert all(isinstance(layer, SHARDABLE) for layer in layers)
    held, everything = (sum(p.numel() for m in parts for p in m.parameters()) for parts in (layers, [net]))
    assert held > 0.9 * everything  # most of the rest is the table of tokens


def test_fsdp_wraps_each_layer_and_the_whole(tiny_teacher: Segmenter):
    config = settings(student={"vision_depth": 2}, strategy={"kind": "fsdp"})
    pupil = pupil_of(tiny_teacher, config)
    layers = layers_of(pupil.student.net)
    names = Counter(type(layer).__name__ for layer in layers)
    make_strategy(config).setup(pupil, lambda module: AdamW(trainable(module)))
    assert names == {"Sam3ViTLayer": 2, "CLIPEncoderLayer": 2, "Sam3DetrEncoderLayer": 2, "Sam3DetrDecoderLayer": 2}
    wrapped = [part for part in pupil.modules() if isinstance(part, FSDPModule)]
    assert {id(part) for part in wrapped} == {id(layer) for layer in layers} | {id(pupil)}


def address_space() -> int:
    """Bytes that this process has mapped, touched or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_the_buffers_of_zero_are_no_larger_than_the_network(kind: dict[str, Any], tiny_teacher: Segmenter):
    """A process that has mapped more than the machine holds cannot even start another."""
    config = config_of(kind, steps=1)
    pupil = pupil_of(tiny_teacher, config)
    strategy, before = make_strategy(config), address_space()
    module, _ = strategy.setup(pupil, lambda module: AdamW(trainable(module)))
    strategy.backward(simple_loss(module))
    assert address_space() - before < 1e9


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "fsdp" else pytest.mark.long) for name in OFFLOADED]
)
def test_offloaded_shards_with_recomputed_layers_are_trained_to_the_same_weights(
    name: str, precision: str, tiny_teacher: Segmenter, tmp_path: Path
):
    trained: list[dict[str, Tensor]] = []
    plain = {key: value for key, value in OFFLOADED[name].items() if key != "offload"}
    for strategy, recompute in ((plain, False), (OFFLOADED[name], True)):
        config = config_of(strategy, precision, steps=2, accumulate=2, gradient_checkpointing=recompute)
        trained.append(trained_by(config, tiny_teacher, tmp_path / str(recompute)))
    start = pupil_of(tiny_teacher, config_of({"kind": "ddp"})).student.state_dict()
    assert_same_weights(trained[1], trained[0], start)


def trained_by(config: Any, teacher: Segmenter, directory: Path) -> dict[str, Tensor]:
    strategy = make_strategy(config)
    if config.strategy.precision == "fp16":
        strategy.scale.value = 64.0  # small enough for every step to count
    report, _ = run(config, teacher, directory, strategy=strategy)
    assert not strategy.overflowed
    return load_segmenter(directory / f"step-{report.step:08d}").state_dict()


@pytest.mark.parametrize("name", [name for name in OFFLOADED if name.startswith("deepspeed")])
def test_deepspeed_offloads_to_the_optimizer_of_torch(name: str, tiny_teacher: Segmenter):
    # DeepSpeed's own would be compiled.
    strategy = make_strategy(config_of(OFFLOADED[name]))
    _, optimizer = strategy.setup(
        pupil_of(tiny_teacher, config_of(OFFLOADED[name])), lambda module: AdamW(trainable(module))
    )
    assert type(optimizer.optimizer) is AdamW
    zero = strategy.engine.zero_offload_optimizer(), strategy.engine.zero_offload_param()
    assert zero[0].device == "cpu"
    assert (zero[1] is not None and zero[1].device == "cpu") == (name == "deepspeed-3-all")
