"""Gradient checkpointing: a layer keeps what went into it, and computes the rest again when its gradient is due.

SAM3's image tower at 1008 pixels in float32 then keeps 1.1 GB an image instead of 12.1 (counted on storages without
memory, tests/sam3dist/models/test_recompute.py). The price is one more forward call of the layers: a step of the
embedded teacher's shape takes 1.2 times as long (one CPU core).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from sam3dist.models.segmenter import SHARDABLE

if TYPE_CHECKING:
    from collections.abc import Callable


def recompute_layers(module: nn.Module) -> int:
    """How many transformer layers compute their activations again in the backward pass from now on, while training.

    All four kinds of SHARDABLE: those of the ViT hold most, and with many phrases an image those of DETR's encoder.
    The layer's own `forward` is what runs twice, not the call around it, so the hooks by which FSDP and DeepSpeed
    gather its weights stay outside. transformers' switch for the same knows only ViT and CLIP, and its
    `activation_checkpointing_enable` refuses SAM3.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, SHARDABLE)]
    for layer in layers:
        layer.forward = partial(_recomputed, layer, layer.forward)  # type: ignore[method-assign]
    return len(layers)


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not layer.training:
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
