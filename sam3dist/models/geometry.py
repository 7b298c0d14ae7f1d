"""The prompt token that SAM3 makes of no boxes at all, which Meta's network always sees and transformers' never.

Read in both sources, and settled so. Meta (github.com/facebookresearch/sam3): `Sam3Image._encode_prompt`
(sam3/model/sam3_image.py) runs the geometry encoder for every phrase and appends what it gives to the text; without
boxes `SequenceGeometryEncoder.forward` (geometry_encoders.py) still gives one token, a learned class token that has
attended to the image. So it is in training, where the collator (train/data/collator.py) makes no boxes of a phrase that
has none, and in `Sam3Processor.set_text_prompt`, by way of `_get_dummy_prompt`. DETR's encoder and decoder, the scores
and the mask decoder all see it. transformers: `Sam3Model.forward` runs its geometry encoder only where there are boxes
(`has_geometry_prompts`), so its answers to text alone lack a token that the weights were trained with.

Hence SAM3 is asked here as Meta asks it. Students have no geometry encoder: they learn to answer so without the token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Config
from transformers.models.sam3.modeling_sam3 import Sam3GeometryEncoder

from sam3dist.errors import ConfigError

UNTRAINED = "untrained_geometry"
"""True in the config.json of a network of SAM3's shape whose geometry encoder has never been trained."""


def geometry_token(encoder: Sam3GeometryEncoder, level: Tensor, place: Tensor) -> Tensor:
    """What the geometry encoder says of each image when there are no boxes: [B, 1, C].

    level: the coarsest feature map [B, C, g, g]; place: its position encoding, [1, C, g, g]. The steps of
    `Sam3GeometryEncoder.forward` that are left without boxes: the token does not depend on the phrase, so one an image
    is enough, and there is nothing to pool.
    """
    images, positions = (tensor.flatten(2).transpose(1, 2) for tensor in (level, place))
    token = encoder.cls_embed.weight.expand(len(level), 1, -1)
    token = encoder.prompt_layer_norm(encoder.final_proj(token))
    for layer in encoder.layers:
        token = layer(prompt_feats=token, vision_feats=images, vision_pos_encoding=positions, prompt_mask=None)
    return encoder.output_layer_norm(token)


def with_token(text: Tensor, mask: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Text features [P, T, C] and their mask [P, T] with the token [P, 1, C] of each prompt's image behind them."""
    return torch.cat([text, token], dim=1), torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


def uses_geometry_token(config: Sam3Config, wanted: bool | None) -> bool:
    """Whether a network of this configuration is asked with the token; None: where its geometry encoder is trained.

    ConfigError where the token is wanted of a network that has no geometry encoder.
    """
    shape: Any = config
    geometry, detr = shape.geometry_encoder_config, shape.detr_encoder_config
    possible = geometry.num_layers > 0 and geometry.hidden_size == detr.hidden_size  # else a student's, cut off
    if wanted and not possible:
        raise ConfigError("teacher.geometry_token=true: this network has no geometry encoder; set it to null.")
    if wanted is None:
        return possible and not getattr(config, UNTRAINED, False)
    return wanted
