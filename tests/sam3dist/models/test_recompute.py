"""Gradient checkpointing: the same numbers from fewer activations, whatever strategy trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close
from transformers import Sam3Config, Sam3Model

from sam3dist.engine.guards import watched
from sam3dist.models.recompute import recompute_layers
from sam3dist.models.segmenter import SHARDABLE, Segmenter, segment
from sam3dist.types import PromptBatch


def loss_of(network: nn.Module, batch: PromptBatch) -> Tensor:
    outputs = segment(network, batch, auxiliary=True)
    parts = (outputs.mask_logits, outputs.query_logits, outputs.boxes, outputs.presence_logits, outputs.semantic_logits)
    return sum((part.square().mean() for part in parts), torch.zeros(()))


class Held:
    """What a forward call gives, and the bytes that its graph keeps for the backward call; weights do not count.

    A checkpoint keeps what goes into its layer in a closure, which hooks on saved tensors miss.
    """

    def __init__(self, network: nn.Module, forward: Callable[[], Any]) -> None:
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        kept: dict[int, Tensor] = {}  # alive, so that no storage takes the place of another

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage()._cdata not in weights:
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        def keep_inputs(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    keep(value)

        layers = [layer for layer in network.modules() if isinstance(layer, SHARDABLE)]
        handles = [layer.register_forward_pre_hook(keep_inputs, with_kwargs=True) for layer in layers]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.result = forward()
        for handle in handles:
            handle.remove()
        self.bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_the_loss_and_every_gradient_stay_and_most_activations_go(tiny_teacher: Segmenter, make_batch):
    plain, batch = tiny_teacher.train(), make_batch()
    recomputed = copy.deepcopy(plain)
    assert recompute_layers(recomputed) == 8  # two of each of the four kinds
    torch.manual_seed(0)  # of dropout, which has to be drawn again as it was
    expected = Held(plain, lambda: loss_of(plain, batch))
    expected.result.backward()
    torch.manual_seed(0)
    found = Held(recomputed, lambda: loss_of(recomputed, batch))
    found.result.backward()
    assert found.result.item() == expected.result.item()
    for name, parameter in plain.named_parameters():
        gradient = recomputed.get_parameter(name).grad
        assert (gradient is None) == (parameter.grad is None), name
        if gradient is not None:
            assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7, msg=name)
    assert found.bytes < 0.7 * expected.bytes  # of so small a network the masks hold most


def test_the_image_tower_of_sam3_holds_a_tenth():
    """On storages without memory, which count as those of a CPU do."""
    with FakeTensorMode():
        tower = Sam3Model(Sam3Config()).vision_encoder.train()
        image = torch.zeros(1, 3, 1008, 1008)
        whole = Held(tower, lambda: tower(image)).bytes
        assert recompute_layers(tower) == 32
        rest = Held(tower, lambda: tower(image)).bytes
    assert (whole / 1e9, rest / 1e9) == (pytest.approx(12.1, abs=0.1), pytest.approx(1.1, abs=0.05))
    assert rest >= 32 * 4 * 72 * 72 * 1024  # what goes into the layers


def test_an_evaluation_computes_everything_once(tiny_teacher: Segmenter, make_batch):
    recompute_layers(tiny_teacher)
    calls = []
    tiny_teacher.net.vision_encoder.backbone.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    loss_of(tiny_teacher.eval(), make_batch()).backward()
    assert len(calls) == 1
    loss_of(tiny_teacher.train(), make_batch()).backward()
    assert len(calls) == 3


@pytest.mark.parametrize("weight", ["attention.q_proj", "mlp.fc1"])
def test_a_nan_inside_a_recomputed_layer_is_named(weight: str, tiny_teacher: Segmenter, make_batch):
    recompute_layers(tiny_teacher.train())
    name = f"net.vision_encoder.backbone.layers.1.{weight}"
    tiny_teacher.get_parameter(f"{name}.weight").data.fill_(torch.nan)
    with watched(tiny_teacher) as seen:
        loss_of(tiny_teacher, make_batch()).backward()
    assert seen.output == name


def test_a_gradient_that_becomes_nan_inside_a_recomputed_layer_is_named(tiny_teacher: Segmenter, make_batch):
    recompute_layers(tiny_teacher.train())
    layer = tiny_teacher.net.vision_encoder.backbone.layers[1]

    class Broken(torch.autograd.Function):
        """The same value with a gradient of NaN."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * torch.nan

    layer.mlp.fc2.register_forward_pre_hook(lambda _, args: (Broken.apply(args[0]),))
    with watched(tiny_teacher) as seen:
        loss_of(tiny_teacher, make_batch()).backward()
    assert seen.output is None
    assert seen.gradient == "net.vision_encoder.backbone.layers.1.mlp.activation_fn"
