"""StudentSpec -> Sam3Config -> a network that starts from the teacher."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from math import lcm
from typing import TYPE_CHECKING, Any

import torch
from transformers import Sam3Config, Sam3Model

from sam3dist.errors import ConfigError
from sam3dist.models.inheritance.inherit import MEASURED, inherit_weights
from sam3dist.models.inheritance.transfer import Inherited
from sam3dist.models.layers import global_layers
from sam3dist.models.segmenter import Segmenter, freeze_unused
from sam3dist.types import PromptBatch

if TYPE_CHECKING:
    from sam3dist.config.distill import StudentSpec

log = logging.getLogger(__name__)

GROUPS = 8  # of every GroupNorm in the mask decoder


def build_student(
    spec: StudentSpec, teacher: Segmenter, seed: int, calibration: Iterable[PromptBatch] = ()
) -> Segmenter:
    """The student, in float32 and train mode, with the teacher's tokenizer; what text prompts never use is frozen.

    It starts from the teacher's weights as `init` says, "random" from nothing. `seed` draws what is not inherited, so
    that every worker builds the same student. calibration: a few batches for the inits that look at the teacher's
    work (`MEASURED`), drawn only for those; what they give depends on the device to the last digits.
    """
    student = blank_student(spec, teacher, seed)
    if spec.init != "random":
        batches = list(calibration) if spec.init in MEASURED else []
        _tell(spec.init, inherit_weights(student.net, teacher, spec.init, batches), student.net)
    return student


def blank_student(spec: StudentSpec, teacher: Segmenter, seed: int) -> Segmenter:
    """`build_student` before anything is inherited, for who has weights for it."""
    config = student_config(spec, teacher.net.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Sam3Model(config).float()
    freeze_unused(net)
    return Segmenter(net, teacher.tokenizer).train()


def student_config(spec: StudentSpec, teacher_config: Sam3Config) -> Sam3Config:
    """The configuration of a student of this shape; what the spec leaves open is the teacher's.

    What a text prompt never reaches is made as small as plain Sam3Model allows: the third stage of the pixel
    decoder, CLIP's own projection, and the geometry encoder, which refuses box prompts with a shape error
    because nothing has trained it. Raises ConfigError that names the setting and the nearest valid values.
    """
    config: Any = Sam3Config.from_dict(copy.deepcopy(teacher_config.to_dict()))
    _shape_image(spec, config)
    _shape_vision(spec, config.vision_config.backbone_config)
    _shape_detr(spec, config)
    _shape_text(spec, config.text_config)

    config.mask_decoder_config.num_upsampling_stages = 2
    config.text_config.projection_dim = 1
    geometry = config.geometry_encoder_config
    geometry.hidden_size, geometry.num_attention_heads, geometry.num_layers, geometry.roi_size = 8, 1, 0, 1
    geometry.intermediate_size = 8
    return config


def _shape_image(spec: StudentSpec, config: Any) -> None:
    vision = config.vision_config.backbone_config
    patch, side = vision.patch_size, spec.image_size
    if side is None or side == vision.image_size:
        return
    _require_multiple("image_size", side, patch, f"the patch size {patch}")
    old_grid, old_window, old_learned = vision.image_size // patch, vision.window_size, vision.pretrain_image_size
    grid = side // patch
    vision.image_size = side
    vision.window_size = _window(grid, old_window)
    # Learned positions tile the image, one tile per window or one for the whole image; keep it so.
    if old_learned == old_grid * patch:
        vision.pretrain_image_size = side
    elif old_learned == old_window * patch:
        vision.pretrain_image_size = vision.window_size * patch
    config.vision_config.backbone_feature_sizes = [[scale * grid] * 2 for scale in (4, 2, 1)]


def _window(grid: int, largest: int) -> int:
    """The window, from half the teacher's to the teacher's, that pads the grid least; among equals the largest.

    Padding is attended to like image, so it costs time and blurs features.
    """
    if grid <= largest:
        return grid
    return min(range(largest, (largest - 1) // 2, -1), key=lambda window: -grid % window)


def _shape_vision(spec: StudentSpec, vision: Any) -> None:
    old_width, old_depth = vision.hidden_size, vision.num_hidden_layers
    per_head = old_width // vision.num_attention_heads
    width = spec.vision_width or old_width
    if spec.vision_heads is None:
        _require_multiple("vision_width", width, per_head, f"the teacher's {per_head} channels per head")
        heads = width // per_head
    else:
        heads = spec.vision_heads
        # Rotary positions turn pairs of channels, half of them by x and half by y.
        _require_multiple("vision_width", width, 4 * heads, f"4 x student.vision_heads={heads}")
    vision.hidden_size, vision.num_attention_heads = width, heads
    vision.intermediate_size = spec.vision_mlp or _scaled(vision.intermediate_size, width, old_width)
    depth = spec.vision_depth or old_depth
    vision.global_attn_indexes = global_layers(old_depth, vision.global_attn_indexes, depth)
    vision.num_hidden_layers = depth


def _shape_detr(spec: StudentSpec, config: Any) -> None:
    encoder, decoder, masks = config.detr_encoder_config, config.detr_decoder_config, config.mask_decoder_config
    old_width = encoder.hidden_size
    width = spec.detr_width or old_width
    if width != old_width:
        per_head = lcm(*(part.hidden_size // part.num_attention_heads for part in (encoder, decoder, masks)))
        step = lcm(per_head, GROUPS)
        reason = f"{step}: the teacher has {per_head} channels per head and GroupNorm {GROUPS} groups"
        _require_multiple("detr_width", width, step, reason)
    for part in (encoder, decoder, masks):
        part.num_attention_heads = width // (part.hidden_size // part.num_attention_heads)
        part.hidden_size = width
    for part in (encoder, decoder):
        part.intermediate_size = spec.detr_mlp or _scaled(part.intermediate_size, width, old_width)
    config.vision_config.fpn_hidden_size = width
    encoder.num_layers = spec.encoder_layers or encoder.num_layers
    decoder.num_layers = spec.decoder_layers or decoder.num_layers
    decoder.num_queries = spec.num_queries or decoder.num_queries


def _shape_text(spec: StudentSpec, text: Any) -> None:
    old_width, width = text.hidden_size, spec.text_width or text.hidden_size
    per_head = old_width // text.num_attention_heads
    _require_multiple("text_width", width, per_head, f"the teacher's {per_head} channels per head")
    text.hidden_size, text.num_attention_heads = width, width // per_head
    text.intermediate_size = _scaled(text.intermediate_size, width, old_width)
    text.num_hidden_layers = spec.text_depth or text.num_hidden_layers


def _tell(init: str, inherited: Inherited, net: Sam3Model) -> None:
    share = inherited.share(net)
    counts = ", ".join(f"{len(names)} {origin}" for origin, names in vars(inherited).items())
    log.log(
        logging.WARNING if share < 0.5 else logging.INFO,
        "student.init=%s: %.0f %% of the parameters start from the teacher's; tensors: %s.",
        *(init, 100 * share, counts),
    )


def _scaled(old: int, width: int, old_width: int) -> int:
    return max(1, round(old * width / old_width))


def _require_multiple(setting: str, value: int, step: int, reason: str) -> None:
    if value % step:
        lower, upper = value // step * step, (value // step + 1) * step
        choice = f"{lower} or {upper}" if lower else str(upper)
        raise ConfigError(f"student.{setting}={value} is not a multiple of {reason}; use {choice}.")
