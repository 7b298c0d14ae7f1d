"""SAM3 with another vision encoder or another text tower: a timm backbone, a bidirectional text transformer.

This file is copied beside the weights of every such student, so that `AutoModel.from_pretrained(directory,
trust_remote_code=True)` answers as we do, with transformers and timm and nothing of ours. It may therefore import
nothing but torch, transformers and timm. What the parts are called and how they are called is `Sam3Model`'s.

B images, P phrases, L tokens, C channels of the DETR side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    Sam3Config,
    Sam3LiteTextTextModel,
    Sam3Model,
    Sam3VisionConfig,
    Sam3VisionModel,
)
from transformers.models.sam3.modeling_sam3 import (
    Sam3DetrDecoder,
    Sam3DetrEncoder,
    Sam3DotProductScoring,
    Sam3FPNLayer,
    Sam3MaskDecoder,
    Sam3PreTrainedModel,
    Sam3SinePositionEmbedding,
    Sam3VisionEncoderOutput,
)

STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the maps that a backbone must have; the first three are those of the levels that come of them."""


class TimmVisionConfig(PreTrainedConfig):
    """A timm backbone and the neck that makes SAM3's three levels of its maps."""

    model_type = "sam3_student_vision"
    base_config_key = "vision_config"

    backbone: str = "repvit_m1_1"
    neck: str = "pyramid"  # or "sam3"
    image_size: int = 1024
    fpn_hidden_size: int = 256
    head_width: int = 1024  # channels between backbone and neck="sam3", which are those of SAM3's ViT
    mean: list[float] | None = None  # of the pixels the backbone wants, in 0..1
    std: list[float] | None = None


class Sam3StudentConfig(Sam3Config):
    """Sam3Config, but the vision side may be a TimmVisionConfig and the text side a Sam3LiteTextTextConfig."""

    model_type = "sam3_student"

    def __post_init__(self, **kwargs: Any) -> None:
        vision: Any = self.vision_config
        if isinstance(vision, dict) and vision.get("model_type") == TimmVisionConfig.model_type:
            self.vision_config = TimmVisionConfig(**vision)
        super().__post_init__(**kwargs)


class Pyramid(nn.Module):
    """Levels at strides 4, 8 and 16 from the backbone's maps at 4, 8, 16 and 32.

    1x1 convolutions bring all maps to one width, each is added to the next finer one, and a depthwise 3x3 with a 1x1
    smooths the sums: 0.4 million parameters where SAM3's neck on a 1024-wide head has 17.
    """

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1))
            for _ in channels[:-1]
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        total = self.laterals[-1](maps[-1])
        levels: list[Tensor] = []
        for finer, lateral, smooth in zip(maps[-2::-1], self.laterals[-2::-1], self.smooth[::-1], strict=True):
            total = lateral(finer) + F.interpolate(total, size=finer.shape[-2:], mode="nearest")
            levels.insert(0, smooth(total))
        return levels


class SingleMapNeck(nn.Module):
    """The same levels from the deepest map alone, as EfficientSAM3 makes them: resized to stride 16, brought to the
    width of SAM3's ViT by a 1x1 and a 3x3 convolution, and then through SAM3's own neck, whose weights fit."""

    def __init__(self, channels: int, head_width: int, width: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(channels, head_width, 1, bias=False),
            nn.BatchNorm2d(head_width),
            nn.GELU(),
            nn.Conv2d(head_width, head_width, 3, padding=1),
        )
        self.fpn_layers = nn.ModuleList(Sam3FPNLayer(head_width, width, scale) for scale in (4.0, 2.0, 1.0))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        wide = F.interpolate(maps[-1], size=maps[-2].shape[-2:], mode="bilinear", align_corners=False)
        wide = self.head(wide)
        return [layer(wide) for layer in self.fpn_layers]


class TimmVisionEncoder(PreTrainedModel):
    """Pixels [B, 3, H, W] in -1..1, H and W multiples of 32, to three levels at strides 4, 8 and 16."""

    config_class = TimmVisionConfig
    main_input_name = "pixel_values"
    backbone: nn.Module
    position_encoding: nn.Module
    scale: Tensor
    shift: Tensor
    _supports_sdpa = True  # timm chooses its attention itself; without this the whole network would have to be eager

    def __init__(self, config: TimmVisionConfig) -> None:
        super().__init__(config)
        import timm  # here, so that networks with SAM3's own ViT need none

        if not timm.is_model(config.backbone):  # timm would fetch names like hf-hub:... from elsewhere
            raise ValueError(f"backbone={config.backbone!r}: timm has no such network.")
        backbone: Any = timm.create_model(config.backbone, features_only=True)
        info = backbone.feature_info
        self.backbone = backbone
        self.used = [info.reduction().index(stride) for stride in STRIDES]
        channels = [info.channels()[index] for index in self.used]
        if config.neck == "pyramid":
            self.neck: Pyramid | SingleMapNeck = Pyramid(channels, config.fpn_hidden_size)
        elif config.neck == "sam3":
            self.neck = SingleMapNeck(channels[-1], config.head_width, config.fpn_hidden_size)
        else:
            raise ValueError(f"neck={config.neck!r} is unknown; use 'pyramid' or 'sam3'.")
        self.position_encoding = Sam3SinePositionEmbedding(config.fpn_hidden_size // 2, normalize=True)
        mean, std = torch.tensor(config.mean or [0.5] * 3), torch.tensor(config.std or [0.5] * 3)
        # Saved with the weights: what is not saved is lost where a network is built without memory and then filled.
        self.register_buffer("scale", (0.5 / std).view(3, 1, 1))
        self.register_buffer("shift", ((0.5 - mean) / std).view(3, 1, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: timm has drawn its weights as each family needs them, torch those of the neck. Only tables that
        are not saved with the weights are computed anew, after loading."""
        tables: Any = getattr(module, "init_non_persistent_buffers", None)
        if tables is not None:
            tables()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Sam3VisionEncoderOutput:
        maps = self.backbone(pixel_values * self.scale + self.shift)
        maps = [maps[index] for index in self.used]
        levels: list[Tensor] = self.neck(maps)
        places = [self.position_encoding(level.shape, level.device, level.dtype) for level in levels]
        return Sam3VisionEncoderOutput(
            last_hidden_state=maps[-1],
            # Sam3Model drops the last of its four levels, so the third stands there twice.
            fpn_hidden_states=(*levels, levels[-1]),
            fpn_position_encoding=(*places, places[-1]),
        )


class PhrasesOnly(nn.Module):
    """In the place of the geometry encoder, which these students do not have."""

    def forward(self, **kwargs: Any) -> None:
        raise ValueError("This network answers phrases; it was not taught boxes. Leave input_boxes out.")


class Sam3StudentModel(Sam3Model):
    """Sam3Model of a Sam3StudentConfig, without the geometry encoder."""

    config_class = Sam3StudentConfig

    def __init__(self, config: Sam3StudentConfig) -> None:
        Sam3PreTrainedModel.__init__(self, config)
        parts: Any = config
        vision, text, width = parts.vision_config, parts.text_config, parts.detr_encoder_config.hidden_size
        heads = (parts.detr_encoder_config, parts.detr_decoder_config, parts.mask_decoder_config)
        for part in heads:
            part._attn_implementation = config._attn_implementation
        see: Any = Sam3VisionModel if isinstance(vision, Sam3VisionConfig) else TimmVisionEncoder
        read: Any = CLIPTextModelWithProjection if text.model_type == "clip_text_model" else Sam3LiteTextTextModel
        refuse: Any = PhrasesOnly
        self.vision_encoder = see(vision)
        self.text_encoder = read(text)
        self.vocab_size = text.vocab_size
        self.text_projection = nn.Linear(text.hidden_size, width)
        self.geometry_encoder = refuse()
        self.detr_encoder = Sam3DetrEncoder(parts.detr_encoder_config)
        self.detr_decoder = Sam3DetrDecoder(parts.detr_decoder_config)
        self.mask_decoder = Sam3MaskDecoder(parts.mask_decoder_config)
        self.dot_product_scoring = Sam3DotProductScoring(config)
        self.post_init()

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Token features [P, L, width] and, as `pooler_output`, the same in C channels.

        The features of a phrase depend on its own tokens alone, whatever and however much follows them: a causal
        tower never sees what follows; for a bidirectional one, which does (its convolutions know no mask, its
        positions stretch with the row), every row is made as long as its positions, filled up with the end token.
        """
        length = input_ids.shape[1]
        text: Any = self.config.text_config
        missing = text.max_position_embeddings - length
        if isinstance(self.text_encoder, Sam3LiteTextTextModel) and (missing or attention_mask is not None):
            more = (0, missing)
            attention_mask = F.pad(torch.ones_like(input_ids) if attention_mask is None else attention_mask, more)
            input_ids = F.pad(input_ids, more).masked_fill(attention_mask == 0, text.vocab_size - 1)
        read = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask)
        read.last_hidden_state = read.last_hidden_state[:, :length]
        read.pooler_output = self.text_projection(read.last_hidden_state)
        return read


Sam3StudentConfig.register_for_auto_class()
Sam3StudentModel.register_for_auto_class("AutoModel")
