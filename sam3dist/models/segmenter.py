"""One network, many phrases per image: the call that teachers and students share.

transformers' Sam3Model answers one phrase per image and drops what earlier decoder layers predict. Here its parts
are called one by one, in the order of `Sam3Model.forward`, so that the vision encoder, most of the cost, runs
once per image, each distinct phrase passes the text tower once, and every decoder layer can be supervised.

B images, P prompts, Q queries, C channels, L decoder layers, g side of the coarsest feature map.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3VisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.sam3.modeling_sam3 import (
    Sam3DetrDecoderLayer,
    Sam3DetrEncoderLayer,
    Sam3Model,
    Sam3ViTLayer,
    box_cxcywh_to_xyxy,
    inverse_sigmoid,
)
from transformers.models.sam3_lite_text.modeling_sam3_lite_text import Sam3LiteTextTextEncoderLayer

from sam3dist.models.geometry import geometry_token, with_token
from sam3dist.models.network import grid_of
from sam3dist.models.text import text_rule, tokenize
from sam3dist.types import LayerOutputs, PromptBatch, SegOutputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARDABLE = (
    Sam3ViTLayer,
    CLIPEncoderLayer,
    Sam3LiteTextTextEncoderLayer,
    Sam3DetrEncoderLayer,
    Sam3DetrDecoderLayer,
)
"""Layers that only ever run through their own forward, so FSDP may shard each of them as a unit.

Larger parts may not be units: `detr_decoder.box_head` is also called from outside the decoder. timm backbones have no
such layers in common, and are small.
"""

LEVELS = 3
"""Feature maps, from fine to coarse, that the neck hands on."""


class Segmenter(nn.Module):
    """A Sam3Model with its tokenizer, asked about uint8 images and phrases.

    `autocast` is the precision in which a frozen teacher computes; None leaves it to the caller. With
    `geometry_token` the prompts are those that SAM3 was trained with, see geometry.py; students do without.
    """

    def __init__(self, net: Sam3Model, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.net = net
        self.tokenizer = tokenizer
        self.autocast: torch.dtype | None = None
        self.geometry_token = False

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels; other sizes are resized on the device."""
        return int(self.net.config.image_size)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def grid(self) -> int:
        """Side g of the coarsest feature map in cells; masks have four times as many a side."""
        return grid_of(self.net.config)

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest phrase the text tower reads; longer ones are cut."""
        return text_rule(self.net.config).context

    @property
    def feature_widths(self) -> dict[str, int]:
        """Channels of each feature map in the outputs."""
        return feature_widths(self.net.config)

    def forward(
        self, images: Tensor, image_of_prompt: Tensor, prompts: tuple[str, ...], auxiliary: bool = False
    ) -> dict[str, Tensor]:
        """Raw answers by name; `segment` packs them into SegOutputs.

        images: uint8 [B, 3, H, W]. image_of_prompt: int64 [P] into images. A flat dict of tensors, because
        the hooks of DDP, FSDP and DeepSpeed look for tensors in dicts but not in dataclasses. Masks keep the
        precision they were computed in (they are large); everything else is float32.
        """
        device = self.device
        scope = nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)
        with scope:
            return self._answer(images.to(device), image_of_prompt.to(device), prompts, auxiliary)

    def _answer(
        self, images: Tensor, image_of_prompt: Tensor, prompts: tuple[str, ...], auxiliary: bool
    ) -> dict[str, Tensor]:
        net = self.net
        count = len(prompts)
        assert count == image_of_prompt.shape[0] > 0

        vision = net.vision_encoder(self.normalised(images))
        # The model computes a fourth, coarser level and never uses it.
        maps = vision.fpn_hidden_states[:-1]
        prompt_maps = [level.index_select(0, image_of_prompt) for level in maps]
        place = vision.fpn_position_encoding[-2][:1]
        text, text_mask = self.read(prompts)
        if self.geometry_token:
            token = geometry_token(net.geometry_encoder, maps[-1], place)
            text, text_mask = with_token(text, text_mask, token.index_select(0, image_of_prompt))
        encoded = self.join(prompt_maps[-1], place, text, text_mask)
        queries, found = self.find(encoded, text, text_mask)
        masks = net.mask_decoder(
            decoder_queries=queries,
            backbone_features=prompt_maps,
            encoder_hidden_states=encoded.last_hidden_state,
            prompt_features=text,
            prompt_mask=text_mask,
        )
        logits, boxes, presence = found.query_logits, found.boxes, found.presence_logits
        answer = {
            "mask_logits": masks.pred_masks,
            "query_logits": logits[-1],
            "boxes": boxes[-1],
            "presence_logits": presence[-1],
            "semantic_logits": masks.semantic_seg.squeeze(1).float(),
            "features.vision": maps[-1],
            "features.encoder": self.as_map(encoded.last_hidden_state),
        }
        if auxiliary:
            answer |= {
                "auxiliary.query_logits": logits[:-1],
                "auxiliary.boxes": boxes[:-1],
                "auxiliary.presence_logits": presence[:-1],
            }
        return answer

    def join(self, level: Tensor, place: Tensor, text: Tensor, text_mask: Tensor) -> Any:
        """The DETR encoder's output for the coarsest map [P, C, g, g] of every prompt's image.

        place: the position encoding of the map, [1, C, g, g], the same for every image.
        """
        return self.net.detr_encoder(
            vision_features=[level],
            text_features=text,
            vision_pos_embeds=[place.expand(len(text), -1, -1, -1)],
            text_mask=text_mask,
        )

    def find(self, encoded: Any, text: Tensor, text_mask: Tensor) -> tuple[Tensor, LayerOutputs]:
        """The last layer's queries [P, Q, C], and what every decoder layer finds, stacked: [L, P, ...] float32."""
        net = self.net
        decoded = net.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=text,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=text_mask,
            spatial_shapes=encoded.spatial_shapes,
        )
        queries = decoded.intermediate_hidden_states  # [L, P, Q, C]
        offsets = net.detr_decoder.box_head(queries)
        boxes = box_cxcywh_to_xyxy((inverse_sigmoid(decoded.reference_boxes) + offsets).sigmoid())
        logits = net.dot_product_scoring(decoder_hidden_states=queries, text_features=text, text_mask=text_mask)
        presence = decoded.presence_logits.squeeze(-1)
        return queries[-1], LayerOutputs(logits.squeeze(-1).float(), boxes.float(), presence.float())

    def as_map(self, tokens: Tensor) -> Tensor:
        """Tokens [N, g * g, C], row by row, as the map [N, C, g, g]."""
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def normalised(self, images: Tensor) -> Tensor:
        """Float images in -1..1 (SAM3's mean and deviation are 0.5) at the network's resolution."""
        pixels = images.float()
        if images.shape[-2:] != (self.image_size, self.image_size):
            pixels = F.interpolate(pixels, size=(self.image_size,) * 2, mode="bilinear", antialias=True)
        return pixels / 127.5 - 1

    def read(self, prompts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Text features [P, T, C] and their mask [P, T]; a phrase asked of several images is read once."""
        distinct = {phrase: index for index, phrase in enumerate(dict.fromkeys(prompts))}
        ids, mask = tokenize(self.tokenizer, list(distinct), self.max_tokens)
        ids, mask = ids.to(self.device), mask.to(self.device)
        features = self.net.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        chosen = torch.tensor([distinct[phrase] for phrase in prompts], device=self.device)
        return features.index_select(0, chosen), mask.index_select(0, chosen).bool()


class Pupil(nn.Module):
    """What trains: the student, and 1x1 convolutions that widen its features to the teacher's.

    `feature_widths` names the features to imitate and the teacher's channels for each; an empty dict gives
    no features. Only `student` is ever saved.
    """

    def __init__(self, student: Segmenter, feature_widths: dict[str, int]) -> None:
        super().__init__()
        self.student = student
        own = student.feature_widths
        self.projections = nn.ModuleDict(
            {
                name: nn.Identity() if own[name] == width else nn.Conv2d(own[name], width, kernel_size=1)
                for name, width in feature_widths.items()
            }
        )

    def forward(
        self, images: Tensor, image_of_prompt: Tensor, prompts: tuple[str, ...], auxiliary: bool = False
    ) -> dict[str, Tensor]:
        """The student's answers, with the named features in the teacher's width and no other features."""
        answer = self.student(images, image_of_prompt, prompts, auxiliary)
        projected = {name: projection(answer[f"features.{name}"]) for name, projection in self.projections.items()}
        kept = {name: value for name, value in answer.items() if not name.startswith("features.")}
        return kept | {f"features.{name}": value for name, value in projected.items()}


def segment(module: nn.Module, batch: PromptBatch, auxiliary: bool = False) -> SegOutputs:
    """The answers of a Segmenter or Pupil, bare or wrapped by a strategy, to every prompt of the batch."""
    answer: dict[str, Any] = module(batch.images, batch.image_of_prompt, batch.prompts, auxiliary)
    layers: tuple[LayerOutputs, ...] = ()
    if auxiliary:
        names = ("query_logits", "boxes", "presence_logits")
        layers = tuple(
            LayerOutputs(*tensors) for tensors in zip(*(answer[f"auxiliary.{name}"] for name in names), strict=True)
        )
    return SegOutputs(
        mask_logits=answer["mask_logits"],
        query_logits=answer["query_logits"],
        boxes=answer["boxes"],
        presence_logits=answer["presence_logits"],
        semantic_logits=answer["semantic_logits"],
        features={
            name.removeprefix("features."): value for name, value in answer.items() if name.startswith("features.")
        },
        auxiliary=layers,
    )


def feature_widths(config: Any) -> dict[str, int]:
    """Channels of each feature map of a network with this Sam3Config."""
    return {"vision": config.vision_config.fpn_hidden_size, "encoder": config.detr_encoder_config.hidden_size}


def freeze_unused(net: Sam3Model) -> list[str]:
    """The names of the parameters that no text prompt reaches, which now need no gradient.

    Without this DDP waits for their gradients for ever. `Sam3Model.forward` drops the last level of the neck;
    two stages of the pixel decoder join three levels; the text towers' own projections feed a pooled output nobody
    reads; the geometry encoder is for boxes.
    """
    decoder = "mask_decoder.pixel_decoder"
    stages = range(LEVELS - 1, len(net.mask_decoder.pixel_decoder.conv_layers))
    prefixes = [
        "text_encoder.text_projection.",
        "text_encoder.projection.",
        "geometry_encoder.",
        *(f"{decoder}.{part}.{stage}." for stage in stages for part in ("conv_layers", "norms")),
    ]
    if isinstance(net.vision_encoder, Sam3VisionModel):
        prefixes.append(f"vision_encoder.neck.fpn_layers.{LEVELS}.")
    frozen = []
    for name, parameter in net.named_parameters():
        if name.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen
