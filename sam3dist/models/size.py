"""How large a network of some configuration is, before anything is built."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Sam3Config

from sam3dist.models.network import build_network

GROUP = 32  # int4 weights that share one fp16 scale, as in ExecuTorch's 8da4w
PARTS = {"vision_encoder": "vision", "text_encoder": "text", "text_projection": "text"}
"""Modules of a network by the part they count to; everything else is the head: DETR, masks, scores."""


@dataclass(frozen=True)
class ModelSize:
    """Parameters in millions, and decimal megabytes of the weights by precision: fp32, fp16, int8, int4."""

    params_millions: float
    megabytes: dict[str, float]
    parts: dict[str, float]
    """The millions of parameters of `vision`, `text` and `head`."""


def model_size(config: Sam3Config) -> ModelSize:
    """The size of a network of this configuration, counted on the meta device: no memory, 0.1 s, of some backbones 0.5.

    int8: matrices and kernels at 8 bits with an fp16 scale per output channel. int4: linear layers and
    embeddings at 4 bits with an fp16 scale per 32 weights, kernels as in int8. All else stays fp16.
    """
    with torch.device("meta"):
        net = build_network(config)
    parts = dict.fromkeys(("vision", "text", "head"), 0)
    for name, parameter in net.named_parameters():
        parts[PARTS.get(name.partition(".")[0], "head")] += parameter.numel()
    total = sum(parts.values())
    bits = dict.fromkeys(("int8", "int4"), 0)
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            count, channels = parameter.numel(), parameter.shape[0]
            if name != "weight" or parameter.dim() < 2:
                eight = four = 16 * count
            else:
                eight = 8 * count + 16 * channels
                row = count // channels
                groups = channels * -(-row // GROUP)
                four = 4 * count + 16 * groups if isinstance(module, nn.Linear | nn.Embedding) else eight
            bits["int8"] += eight
            bits["int4"] += four
    megabytes = {"fp32": 4 * total / 1e6, "fp16": 2 * total / 1e6}
    megabytes |= {precision: count / 8e6 for precision, count in bits.items()}
    return ModelSize(total / 1e6, megabytes, {part: count / 1e6 for part, count in parts.items()})
