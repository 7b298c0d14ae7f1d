"""Which class a configuration is built by: plain Sam3Model wherever it can be, else Sam3StudentModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Sam3Config, Sam3Model

from sam3dist.models.modeling_sam3_student import STRIDES, Sam3StudentConfig, Sam3StudentModel, TimmVisionConfig

MODEL_TYPES = ("sam3", "sam3_video", Sam3StudentConfig.model_type)
"""What config.json may call a network that we read; Meta publishes the detector inside its video model."""


def network_class(config: Sam3Config) -> type[Sam3Model]:
    """The class that builds and loads networks of this configuration."""
    return Sam3StudentModel if isinstance(config, Sam3StudentConfig) else Sam3Model


def build_network(config: Sam3Config) -> Sam3Model:
    """A network of this configuration with random weights, on the current default device."""
    return network_class(config)(config)


def as_config(content: Mapping[str, Any]) -> Sam3Config:
    """The configuration in a config.json of one of MODEL_TYPES, by classes of ours and of transformers alone.

    What the directory says of code to run (`auto_map`) is never followed.
    """
    kind = Sam3StudentConfig if content.get("model_type") == Sam3StudentConfig.model_type else Sam3Config
    return kind(**(content.get("detector_config") or content))


def has_backbone(config: Sam3Config) -> bool:
    """Whether a timm network sees for this configuration, and not SAM3's ViT."""
    return isinstance(config.vision_config, TimmVisionConfig)


def grid_of(config: Sam3Config) -> int:
    """Side of the coarsest of the three levels; masks have four times as many cells a side."""
    vision: Any = config.vision_config
    stride = STRIDES[-2] if has_backbone(config) else vision.backbone_config.patch_size
    return int(vision.image_size) // int(stride)
