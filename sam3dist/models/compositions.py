"""What a student is made of, in the few words and numbers by which people choose one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from transformers import Sam3Config

from sam3dist.models.flops import gigaflops
from sam3dist.models.network import as_config, has_backbone
from sam3dist.models.size import ModelSize, model_size
from sam3dist.models.student import student_config
from sam3dist.models.teacher import teacher_config
from sam3dist.models.text_towers import CAUSAL

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig

SAM3 = "facebook/sam3"


@dataclass(frozen=True)
class Composition:
    """A network by name: its two sides in words, its size, and its operations by part."""

    name: str
    vision: str
    text: str
    image_size: int
    size: ModelSize
    gigaflops: dict[str, float]


def composition(name: str, config: Sam3Config) -> Composition:
    """The composition of a network of this configuration; a second or two, and nothing the second time."""
    size, operations = _counted(config.to_json_string(use_diff=False))
    return Composition(name, vision_words(config), text_words(config), config.image_size, size, operations)


def student_shape(run: DistillConfig) -> Sam3Config:
    """The configuration of a run's student. That of facebook/sam3 is known without asking its server."""
    source = run.student.like or run.teacher.source
    return student_config(run.student, Sam3Config() if source == SAM3 else teacher_config(source))


def vision_words(config: Sam3Config) -> str:
    """The vision side: "ViT 1024/32/16" for width, depth and heads, or the backbone and its neck."""
    vision: Any = config.vision_config
    if has_backbone(config):
        return f"{vision.backbone}, {vision.neck}"
    backbone = vision.backbone_config
    return f"ViT {backbone.hidden_size}/{backbone.num_hidden_layers}/{backbone.num_attention_heads}"


def text_words(config: Sam3Config) -> str:
    """The text side: kind, width and depth."""
    text: Any = config.text_config
    kind = "CLIP" if text.model_type == CAUSAL else "repmixer" if text.use_repmixer_blocks else "lite"
    return f"{kind} {text.hidden_size}/{text.num_hidden_layers}"


@cache
def _counted(content: str) -> tuple[ModelSize, dict[str, float]]:
    config = as_config(json.loads(content))
    return model_size(config), gigaflops(config)
