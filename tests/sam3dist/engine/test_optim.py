from math import cos, pi
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sam3dist.engine.optim import learning_rate, make_optimizer, set_learning_rate, split_parameters
from sam3dist.models.segmenter import Pupil, Segmenter


def config(**changes: float) -> SimpleNamespace:
    values = {"steps": 100, "learning_rate": 2.0, "warmup_steps": 10, "final_lr_share": 0.1, "weight_decay": 0.5}
    return SimpleNamespace(**{**values, **changes})


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    assert [learning_rate(step, config()) for step in (1, 5, 10)] == pytest.approx([0.2, 1.0, 2.0])
    assert learning_rate(55, config()) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # half way down
    assert learning_rate(40, config()) == pytest.approx(2.0 * (0.1 + 0.9 * (1 + cos(pi / 3)) / 2))
    assert learning_rate(100, config()) == pytest.approx(0.2)


def test_a_run_shorter_than_its_warm_up_still_reaches_the_peak():
    assert learning_rate(4, config(steps=4)) == 2.0
    assert learning_rate(1, config(steps=1, warmup_steps=0)) == pytest.approx(0.2)


def test_only_matrices_and_kernels_decay(tiny_teacher: Segmenter):
    pupil = Pupil(tiny_teacher, {"vision": 48})
    names = {id(parameter): name for name, parameter in pupil.named_parameters()}
    decayed, others = ([names[id(p)] for p in group] for group in split_parameters(pupil))
    assert "projections.vision.weight" in decayed
    assert "student.net.vision_encoder.backbone.layers.0.attention.q_proj.weight" in decayed
    assert not [name for name in decayed if "norm" in name or "embed" in name.split(".")[-2] or "bias" in name]
    for name in ("projections.vision.bias", "student.net.detr_decoder.query_embed.weight"):
        assert name in others
    assert len(decayed) + len(others) == len(names)


def test_frozen_parameters_stay_out_of_the_optimizer():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    optimizer = make_optimizer(layers, config())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in layers[1].parameters()}


def test_decay_shrinks_the_weight_and_leaves_the_bias():
    layer = nn.Linear(1, 1)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = make_optimizer(layer, config())
    set_learning_rate(optimizer, 0.1)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(1 - 0.1 * 0.5)
    assert layer.bias.item() == 1.0
