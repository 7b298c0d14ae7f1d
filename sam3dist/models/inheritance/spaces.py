"""Which axes of a network's parameters count the same channels.

Two axes are in one space if what is kept of the one must be kept of the other: everything that writes to the
residual stream of a tower and everything that reads it, the queries, keys and values of one attention, the two
sides of the hidden channels of one MLP. Names are those of the parameters of transformers' Sam3Model.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import Sam3Model
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.sam3.modeling_sam3 import Sam3ViTModel

TOWERS = {"vision": "vision_encoder.backbone.", "text": "text_encoder.text_model."}
"""The residual streams that can be turned into another basis, and where their parameters are."""
STACKS = {
    "vision": "vision_encoder.backbone.layers.",
    "text": "text_encoder.text_model.encoder.layers.",
    "encoder": "detr_encoder.layers.",
    "decoder": "detr_decoder.layers.",
}
"""The layers of which a shallower student has fewer."""
PATCH_NORM = "vision_encoder.backbone.layer_norm"
"""Makes the stream of patches from their embeddings; all other LayerNorms of the towers read the stream."""
SHARED_HEADS = "detr_decoder.vision_cross_attn"
"""All layers of the decoder get one position bias per head from the same small network."""

HEADS = re.compile(r"(.*(?:attn|attention))\.(?:([qkv]_proj)\.(?:weight|bias)|(?:o|out)_proj\.(weight))$")
HIDDEN = re.compile(
    r"(.*\.mlp|dot_product_scoring\.text_mlp)\.(?:(fc1|layer1)\.(?:weight|bias)|(?:fc2|layer2)\.(weight))$"
)
UPSAMPLED = re.compile(r"(vision_encoder\.neck\.fpn_layers\.(\d+))\.(?:scale_layers\.(\d+)|(proj1))\.(weight|bias)$")


def space_of(name: str, axis: int) -> str | None:
    """The space in which this axis of a parameter lies; None for one of which the same part is kept everywhere.

    "vision" and "text" are the streams of the towers; an attention's or an MLP's space is the path of the module.
    """
    if name.startswith("detr_decoder.box_rpb_embed_") and ".layer2." in name and axis == 0:
        return SHARED_HEADS
    for pattern in (HEADS, HIDDEN):
        match = pattern.match(name)
        if match and axis == (0 if match[2] else 1):
            shared = pattern is HEADS and match[1].startswith("detr_decoder.") and "vision_cross_attn" in match[1]
            return SHARED_HEADS if shared else match[1]
    for tower, prefix in TOWERS.items():
        if name.startswith(prefix):
            return tower if axis == _stream_axis(name) else None
    if name == "text_projection.weight" and axis == 1:
        return "text"
    match = UPSAMPLED.match(name)
    return _upsampled(match, axis) if match else None


def input_axis(module: nn.Module) -> int | None:
    """The axis of a module's weight that counts the channels it reads; None for a module that is no linear map."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        return 1
    return 0 if isinstance(module, nn.ConvTranspose2d) else None


def towers(net: Sam3Model) -> dict[str, Any]:
    """The parts of a network whose streams we know: "vision" for a Sam3ViTModel, "text" for a CLIP text tower.

    A student may see through another backbone, which then has no counterpart in the teacher.
    """
    found: dict[str, Any] = {}
    backbone = getattr(net.vision_encoder, "backbone", None)
    if isinstance(backbone, Sam3ViTModel):
        found["vision"] = backbone
    if isinstance(net.text_encoder, CLIPTextModelWithProjection):
        found["text"] = net.text_encoder.text_model
    return found


def _stream_axis(name: str) -> int:
    """The axis of a tower's parameter that is the stream, given that it is neither of heads nor of hidden channels."""
    if name.endswith("position_embeddings"):
        return 2
    reads = name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc1.weight"))
    return 1 if reads or name.endswith("_embedding.weight") else 0


def _upsampled(match: re.Match[str], axis: int) -> str | None:
    """The channels between the parts of one level of the neck, each of which is a fraction of the tower's width."""
    layer, level, stage, _, kind = match.groups()
    if stage is None:  # the first convolution after those that upsample
        if kind == "bias" or axis != 1:
            return None
        before = {"0": "2", "1": "0"}.get(level)
        return "vision" if before is None else f"{layer}.scale_layers.{before}"
    if kind == "bias" or axis == 1:
        return f"{layer}.scale_layers.{stage}" if kind == "weight" or axis == 0 else None
    if axis == 0:
        return "vision" if stage == "0" else f"{layer}.scale_layers.0"
    return None


def stream_norms(net: Sam3Model) -> dict[str, str]:
    """The LayerNorms that read the stream of a tower, by name, with the tower's."""
    return {
        name: tower
        for tower in towers(net)
        for name, module in net.named_modules()
        if isinstance(module, nn.LayerNorm) and name.startswith(TOWERS[tower]) and name != PATCH_NORM
    }


def stream_writers(net: Sam3Model) -> dict[str, str]:
    """The modules that write to the stream of a tower, by name, with the tower's."""
    starts = {"vision": PATCH_NORM, "text": "text_encoder.text_model.embeddings"}
    return {
        name: tower
        for tower in towers(net)
        for name, _ in net.named_modules()
        if name == starts[tower] or (name.startswith(STACKS[tower]) and name.endswith((".o_proj", ".out_proj", ".fc2")))
    }


def unit_readers(net: Sam3Model) -> dict[str, str]:
    """The modules that read heads or hidden channels, by name, with the space; those no text prompt uses left out."""
    found = {}
    for name, module in net.named_modules():
        axis = input_axis(module)
        space = None if axis is None else space_of(f"{name}.weight", axis)
        if space is not None and space not in TOWERS and not name.startswith("geometry_encoder."):
            found[name] = space
    return found


def stack_layers(net: Sam3Model) -> dict[str, tuple[str, int]]:
    """The layers of every stack by name, with the stack and their number in it, in order."""
    found = {}
    for stack, prefix in STACKS.items():
        for name, _ in net.named_modules():
            if name.startswith(prefix) and name.removeprefix(prefix).isdigit():
                found[name] = (stack, int(name.removeprefix(prefix)))
    return found


def head_count(net: Sam3Model, space: str) -> int | None:
    """Heads of the attention whose space this is; None for a space of hidden channels."""
    if not space.endswith(("attn", "attention")):
        return None
    module: Any = net.get_submodule("detr_decoder.layers.0.vision_cross_attn" if space == SHARED_HEADS else space)
    return int(getattr(module, "num_attention_heads", None) or module.num_heads)
