"""A smaller student starts from the teacher's weights instead of from noise.

A parameter of the student takes from the same parameter of the teacher, in the layer chosen for it (`layers`),
an evenly spaced part of each axis. The part depends on the two lengths alone, so that channels of the residual
stream, one coordinate system for all layers, stay the same everywhere. Evenly and in pairs, because channels
come in sine and cosine pairs of falling frequency, one half for y and one for x: every second pair of a
position code of 256 channels is the position code of 128 channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam3Model

from sam3dist.models.layers import even_layers, vision_layers
from sam3dist.models.network import has_backbone

UNUSED = ("geometry_encoder.", "text_encoder.text_projection.")  # students have the smallest there can be
HEAD_AXIS = re.compile(r"\.(?:\w*attn|attention)\.(?:[qkv]_proj\.(?:weight|bias)|(?:o|out)_proj\.weight)$")


@dataclass(frozen=True)
class Inherited:
    """Names of the student's parameters by origin."""

    copied: tuple[str, ...]
    """The teacher's tensor as it is."""
    sliced: tuple[str, ...]
    """Some of its channels, heads or queries, or its positions interpolated."""
    fresh: tuple[str, ...]
    """The student's is larger, or text prompts never use it; keeps its random start."""


@torch.no_grad()
def inherit_weights(student_net: Sam3Model, teacher_net: Sam3Model) -> Inherited:
    """Fill the student in place with the teacher's weights, wherever no axis is longer than the teacher's."""
    sources: dict[str, Tensor] = dict(teacher_net.named_parameters())
    names = _teacher_names(student_net, teacher_net)
    found: dict[str, list[str]] = {"copied": [], "sliced": [], "fresh": []}
    for name, parameter in student_net.named_parameters():
        source = sources.get(names[name])
        if source is None or name.startswith(UNUSED):
            found["fresh"].append(name)
            continue
        original = source
        if name.endswith("embeddings.position_embeddings"):
            source = _resize_positions(source, parameter.shape[1])
        for axis, want in enumerate(parameter.shape):
            kept = _kept(name, axis, source.shape[axis], want, student_net, teacher_net)
            if kept is None:
                break
            if kept != list(range(source.shape[axis])):
                source = source.index_select(axis, torch.tensor(kept, device=source.device))
        else:
            parameter.copy_(source)
            found["copied" if source is original else "sliced"].append(name)
            continue
        found["fresh"].append(name)
    return Inherited(**{origin: tuple(members) for origin, members in found.items()})


def evenly(have: int, want: int, blocks: int = 2) -> list[int]:
    """`want` of `have` channels: in each of `blocks` equal parts the same, evenly spaced pairs of neighbours.

    Lengths that do not divide into that many pairs give the leading channels.
    """
    if have % (2 * blocks) or want % (2 * blocks):
        return list(range(want))
    pairs, kept_pairs = have // (2 * blocks), want // (2 * blocks)
    return [
        2 * (block * pairs + pair * pairs // kept_pairs) + side
        for block in range(blocks)
        for pair in range(kept_pairs)
        for side in (0, 1)
    ]


def _kept(name: str, axis: int, have: int, want: int, student: Sam3Model, teacher: Sam3Model) -> list[int] | None:
    """Which entries of this axis the student keeps; None if the teacher has too few."""
    if HEAD_AXIS.search(name) and axis == int(name.endswith(("o_proj.weight", "out_proj.weight"))):
        return _kept_heads(_num_heads(teacher, name), have, _num_heads(student, name), want)
    if want > have:
        return None
    # Four position codes side by side: y, x, width, height of a box.
    blocks = 4 if name == "detr_decoder.ref_point_head.layer1.weight" and axis == 1 else 2
    return evenly(have, want, blocks)


def _kept_heads(have_heads: int, have: int, want_heads: int, want: int) -> list[int] | None:
    """Whole heads as far as heads are as wide as the teacher's, else the same part of each head."""
    per_head, want_per_head = have // have_heads, want // want_heads
    if want_heads > have_heads or want_per_head > per_head:
        return None
    channels = evenly(per_head, want_per_head)  # rotary positions, too, are pairs, half of them for each axis
    return [head * per_head + channel for head in evenly(have_heads, want_heads) for channel in channels]


def _num_heads(net: Sam3Model, name: str) -> int:
    config: Any = net.config
    part, second = name.split(".")[:2]
    if part == "vision_encoder":
        assert second == "backbone"
        return config.vision_config.backbone_config.num_attention_heads
    parts = {
        "text_encoder": config.text_config,
        "detr_encoder": config.detr_encoder_config,
        "detr_decoder": config.detr_decoder_config,
        "mask_decoder": config.mask_decoder_config,
        "geometry_encoder": config.geometry_encoder_config,
    }
    return parts[part].num_attention_heads


def _teacher_names(student: Sam3Model, teacher: Sam3Model) -> dict[str, str]:
    """The teacher's parameter for each of the student's: the same, in the layer it inherits."""
    theirs: Any = teacher.config
    ours: Any = student.config
    layers = {
        "text_encoder.text_model.encoder.layers.": even_layers(
            theirs.text_config.num_hidden_layers, ours.text_config.num_hidden_layers
        ),
        "detr_encoder.layers.": even_layers(theirs.detr_encoder_config.num_layers, ours.detr_encoder_config.num_layers),
        "detr_decoder.layers.": even_layers(theirs.detr_decoder_config.num_layers, ours.detr_decoder_config.num_layers),
    }
    if not (has_backbone(theirs) or has_backbone(ours)):
        vision, small_vision = theirs.vision_config.backbone_config, ours.vision_config.backbone_config
        layers["vision_encoder.backbone.layers."] = vision_layers(
            vision.num_hidden_layers,
            vision.global_attn_indexes,
            small_vision.num_hidden_layers,
            small_vision.global_attn_indexes,
        )
    names = {}
    for name, _ in student.named_parameters():
        names[name] = name
        for prefix, chosen in layers.items():
            if name.startswith(prefix):
                layer, rest = name.removeprefix(prefix).split(".", 1)
                names[name] = f"{prefix}{chosen[int(layer)]}.{rest}"
    return names


def _resize_positions(positions: Tensor, count: int) -> Tensor:
    """Learned positions [1, g*g, C] as [1, count, C] on a finer or coarser square grid; the same object if equal."""
    if positions.shape[1] == count:
        return positions
    old, new = round(positions.shape[1] ** 0.5), round(count**0.5)
    grid = positions.float().transpose(1, 2).unflatten(2, (old, old))
    return F.interpolate(grid, size=(new, new), mode="bicubic").flatten(2).transpose(1, 2)
