"""Meta's own checkpoint `sam3.pt` as a Sam3Model.

The names on the left are those of github.com/facebookresearch/sam3, the ones on the right those of transformers.
The file holds a detector, which is Sam3Model, and a tracker, which is left out. Besides the names, attention
projections are fused, learned positions begin with one for a class token that the network no longer has, and
CLIP's projection is transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import Sam3Config, Sam3Model

from sam3dist.errors import CheckpointError
from sam3dist.models.checkpoint import built
from sam3dist.models.pickles import read_pickle

DETECTOR = "detector."
RENAMED = (
    (r"^backbone\.vision_backbone\.trunk\.", "vision_encoder.backbone."),
    (r"^backbone\.vision_backbone\.convs\.", "vision_encoder.neck.fpn_layers."),
    (r"^backbone\.language_backbone\.resizer\.", "text_projection."),
    (r"^backbone\.language_backbone\.encoder\.text_projection$", "text_encoder.text_projection.weight"),
    (r"^backbone\.language_backbone\.encoder\.", "text_encoder.text_model."),
    (r"^geometry_encoder\.encode\.", "geometry_encoder.layers."),
    (r"^geometry_encoder\.encode_norm\.", "geometry_encoder.output_layer_norm."),
    (r"^geometry_encoder\.img_pre_norm\.", "geometry_encoder.vision_layer_norm."),
    (r"^geometry_encoder\.norm\.", "geometry_encoder.prompt_layer_norm."),
    (r"^transformer\.encoder\.", "detr_encoder."),
    (r"^transformer\.decoder\.", "detr_decoder."),
    (r"^dot_prod_scoring\.prompt_mlp\.out_norm\.", "dot_product_scoring.text_mlp_out_norm."),
    (r"^dot_prod_scoring\.prompt_mlp\.", "dot_product_scoring.text_mlp."),
    (r"^dot_prod_scoring\.prompt_proj\.", "dot_product_scoring.text_proj."),
    (r"^dot_prod_scoring\.hs_proj\.", "dot_product_scoring.query_proj."),
    (r"^segmentation_head\.mask_predictor\.mask_embed\.", "mask_decoder.mask_embedder."),
    (r"^segmentation_head\.instance_seg_head\.", "mask_decoder.instance_projection."),
    (r"^segmentation_head\.semantic_seg_head\.", "mask_decoder.semantic_projection."),
    (r"^segmentation_head\.cross_attend_prompt\.", "mask_decoder.prompt_cross_attn."),
    (r"^segmentation_head\.cross_attn_norm\.", "mask_decoder.prompt_cross_attn_norm."),
    (r"^segmentation_head\.", "mask_decoder."),
    # vision tower
    (r"^(vision_encoder\.backbone)\.pos_embed$", r"\1.embeddings.position_embeddings"),
    (r"^(vision_encoder\.backbone)\.patch_embed\.proj\.", r"\1.embeddings.patch_embeddings.projection."),
    (r"^(vision_encoder\.backbone)\.ln_pre\.", r"\1.layer_norm."),
    (r"^(vision_encoder\.backbone)\.blocks\.(\d+)\.norm(\d)\.", r"\1.layers.\2.layer_norm\3."),
    (r"^(vision_encoder\.backbone)\.blocks\.(\d+)\.attn\.proj\.", r"\1.layers.\2.attention.o_proj."),
    (r"^(vision_encoder\.backbone)\.blocks\.(\d+)\.attn\.qkv\.", r"\1.layers.\2.attention.in_proj_"),
    (r"^(vision_encoder\.backbone)\.blocks\.", r"\1.layers."),
    # neck: the first deconvolution is followed by a GELU, hence 0 and 2
    (r"^(vision_encoder\.neck\.fpn_layers\.\d+)\.dconv_2x2(?:_0)?\.", r"\1.scale_layers.0."),
    (r"^(vision_encoder\.neck\.fpn_layers\.\d+)\.dconv_2x2_1\.", r"\1.scale_layers.2."),
    (r"^(vision_encoder\.neck\.fpn_layers\.\d+)\.conv_1x1\.", r"\1.proj1."),
    (r"^(vision_encoder\.neck\.fpn_layers\.\d+)\.conv_3x3\.", r"\1.proj2."),
    # text tower
    (r"^(text_encoder\.text_model)\.token_embedding\.", r"\1.embeddings.token_embedding."),
    (r"^(text_encoder\.text_model)\.positional_embedding$", r"\1.embeddings.position_embedding.weight"),
    (r"^(text_encoder\.text_model)\.ln_final\.", r"\1.final_layer_norm."),
    (r"^(text_encoder\.text_model)\.transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"\1.encoder.layers.\2.layer_norm\3."),
    (r"^(text_encoder\.text_model)\.transformer\.resblocks\.(\d+)\.attn\.", r"\1.encoder.layers.\2.self_attn."),
    (r"^(text_encoder\.text_model)\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"\1.encoder.layers.\2.mlp.fc1."),
    (r"^(text_encoder\.text_model)\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"\1.encoder.layers.\2.mlp.fc2."),
    # DETR decoder: its norms are numbered by when they were written, not by when they run
    (r"^(detr_decoder\.layers\.\d+)\.norm1\.", r"\1.vision_cross_attn_layer_norm."),
    (r"^(detr_decoder\.layers\.\d+)\.norm2\.", r"\1.self_attn_layer_norm."),
    (r"^(detr_decoder\.layers\.\d+)\.norm3\.", r"\1.mlp_layer_norm."),
    (r"^(detr_decoder\.layers\.\d+)\.catext_norm\.", r"\1.text_cross_attn_layer_norm."),
    (r"^(detr_decoder\.layers\.\d+)\.ca_text\.", r"\1.text_cross_attn."),
    (r"^(detr_decoder\.layers\.\d+)\.cross_attn\.", r"\1.vision_cross_attn."),
    (r"^detr_decoder\.norm\.", "detr_decoder.output_layer_norm."),
    (r"^detr_decoder\.bbox_embed\.", "detr_decoder.box_head."),
    (r"^detr_decoder\.presence_token_head\.", "detr_decoder.presence_head."),
    (r"^detr_decoder\.presence_token_out_norm\.", "detr_decoder.presence_layer_norm."),
    (r"^detr_decoder\.boxRPB_embed_(x|y)\.", r"detr_decoder.box_rpb_embed_\1."),
    # layers that DETR's parts share
    (r"^((?:detr|geometry)_encoder\.layers\.\d+)\.cross_attn_image\.", r"\1.cross_attn."),
    (r"^((?:detr|geometry)_encoder\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^(\w+\.layers\.\d+)\.linear(\d)\.", r"\1.mlp.fc\2."),
    (r"^((?:detr|geometry|mask)_.*attn)\.out_proj\.", r"\1.o_proj."),
)
MLP_LAYER = re.compile(r"^((?:detr_decoder\.\w+|dot_product_scoring\.text_mlp)\.)layers\.(\d)\.(?=weight|bias)")
"""Meta counts the layers of a small MLP from 0, transformers names them from layer1."""
LEFT_OUT = re.compile(
    r"backbone\.vision_backbone\.(?:trunk\.blocks\.\d+\.attn\.freqs_cis$|sam2_convs\.)"  # recomputed; tracker's neck
    r"|geometry_encoder\.points_\w+_project\."  # point prompts, which Sam3Model does not take
)


def read_meta_checkpoint(file: str | Path, config: Sam3Config | None = None) -> Sam3Model:
    """The detector of Meta's checkpoint as a float32 Sam3Model; `config` is that of the published model if None.

    Every weight must find its place and every place its weight, else CheckpointError. The file is a pickle and
    is read without the power to run code; one that asks for it is refused.
    """
    state = read_pickle(file)
    if not any(key.startswith(DETECTOR) for key in state):
        raise CheckpointError(f"{file}: holds no weights named {DETECTOR}*; expected Meta's sam3.pt.")
    return built(file, convert_meta_state(state), config or Sam3Config())


def is_left_out(key: str) -> bool:
    """Whether a weight of Meta's file has no place in a Sam3Model: all but the detector, and some of that."""
    return not key.startswith(DETECTOR) or LEFT_OUT.match(key.removeprefix(DETECTOR)) is not None


def convert_meta_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's tensors under transformers' names, in transformers' layout; names without a rule stay as they are."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if is_left_out(key):
            continue
        name = _rename(key.removeprefix(DETECTOR))
        if "in_proj_" in name:
            stem, kind = name.split("in_proj_")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                converted[f"{stem}{letter}_proj.{kind}"] = part
        elif name.endswith("embeddings.position_embeddings"):
            converted[name] = value[:, 1:]
        elif name == "text_encoder.text_projection.weight":
            converted[name] = value.T
        else:
            converted[name] = value
    return converted


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return MLP_LAYER.sub(lambda match: f"{match[1]}layer{int(match[2]) + 1}.", name)
