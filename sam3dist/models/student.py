"""StudentSpec -> the configuration of a network -> the network, which starts from the teacher."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from math import lcm
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Sam3Config, Sam3Model

from sam3dist.errors import ConfigError
from sam3dist.models.backbones import backbone_pixels, load_backbone
from sam3dist.models.inheritance.inherit import MEASURED, inherit_weights
from sam3dist.models.inheritance.transfer import Inherited
from sam3dist.models.layers import global_layers
from sam3dist.models.modeling_sam3_student import STRIDES, Sam3StudentConfig, TimmVisionConfig
from sam3dist.models.network import build_network, has_backbone
from sam3dist.models.segmenter import Segmenter, freeze_unused
from sam3dist.models.text_towers import CAUSAL, load_text_tower, shape_text
from sam3dist.models.widths import require_multiple, scaled
from sam3dist.types import PromptBatch

if TYPE_CHECKING:
    from sam3dist.config.distill import StudentSpec

log = logging.getLogger(__name__)

GROUPS = 8  # of every GroupNorm in the mask decoder
LARGEST_SIDE = 2048  # that student.image_size may be
NAMING = ("model_type", "architectures", "auto_map")
"""Keys of a configuration that say by which class it is built."""


def build_student(
    spec: StudentSpec,
    teacher: Segmenter,
    seed: int,
    calibration: Iterable[PromptBatch] = (),
    told: Callable[[dict[str, Any]], None] | None = None,
) -> Segmenter:
    """The student, in float32 and train mode, with the teacher's tokenizer; what text prompts never use is frozen.

    It starts from the teacher's weights as `init` says, "random" from nothing; a backbone or text tower of another
    family from weights of its own. `seed` draws what is left, so that every worker builds the same student.
    calibration: a few batches for the inits that look at the teacher's work (`MEASURED`), drawn only for those; what
    they give depends on the device to the last digits. told: is given
    what the student has of its teacher, see `_summary`.
    """
    student = blank_student(spec, teacher, seed)
    net = student.net
    # First, since what the teacher has of the same backbone has learned more.
    if spec.backbone_weights is not None:
        load_backbone(net.vision_encoder.backbone, str(spec.backbone), spec.backbone_weights)
    if spec.text_weights is not None:
        load_text_tower(net.text_encoder, str(spec.text_tower), spec.text_weights)
    if spec.init != "random":
        _inherit_statistics(net, teacher.net)
        batches = list(calibration) if spec.init in MEASURED else []
        summary = _summary(spec.init, inherit_weights(net, teacher, spec.init, batches), net)
        _log(summary)
        if told is not None:
            told(summary)
    return student


def blank_student(spec: StudentSpec, teacher: Segmenter, seed: int) -> Segmenter:
    """`build_student` before anything is inherited, for who has weights for it."""
    config = student_config(spec, teacher.net.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_network(config).float()
    freeze_unused(net)
    return Segmenter(net, teacher.tokenizer).train()


@torch.no_grad()
def _inherit_statistics(net: nn.Module, teacher: nn.Module) -> None:
    """Copy what the teacher's BatchNorms have counted, where the student has the same ones."""
    theirs = dict(teacher.named_modules())
    for name, part in net.named_modules():
        source = theirs.get(name)
        if isinstance(part, _BatchNorm) and isinstance(source, _BatchNorm) and part.num_features == source.num_features:
            for own, other in zip(part.buffers(), source.buffers(), strict=True):
                own.copy_(other)


def student_config(spec: StudentSpec, teacher_config: Sam3Config) -> Sam3Config:
    """The configuration of a student of this shape; what the spec leaves open is the teacher's.

    A Sam3Config where plain Sam3Model can be built of it, else a Sam3StudentConfig. What a text prompt never reaches
    is made as small as the class allows: the third stage of the pixel decoder, CLIP's own projection, and the geometry
    encoder, which in a Sam3Model refuses box prompts with a shape error because nothing has trained it. Raises
    ConfigError that names the setting and the nearest valid values.
    """
    config: Any = copy.deepcopy(teacher_config)
    _require_backbone_for(spec, has_backbone(config))
    if spec.backbone is not None or has_backbone(config):
        config.vision_config = _backbone(spec, config.vision_config)
    else:
        _shape_image(spec, config)
        _shape_vision(spec, config.vision_config.backbone_config)
    _shape_detr(spec, config)
    config.text_config = shape_text(spec, config.text_config)

    config.mask_decoder_config.num_upsampling_stages = 2
    geometry = config.geometry_encoder_config
    geometry.hidden_size, geometry.num_attention_heads, geometry.num_layers, geometry.roi_size = 8, 1, 0, 1
    geometry.intermediate_size = 8
    stock = not has_backbone(config) and config.text_config.model_type == CAUSAL
    content = {key: value for key, value in config.to_dict().items() if key not in NAMING}
    return (Sam3Config if stock else Sam3StudentConfig)(**content)


def _require_backbone_for(spec: StudentSpec, inherited: bool) -> None:
    """ConfigError for settings of the other kind of vision side."""
    if spec.backbone is None:
        for key in ("backbone_weights", "neck"):
            value = getattr(spec, key)
            if value is not None:
                raise ConfigError(f"student.{key}={value} has no effect without student.backbone; name one.")
    for key in ("vision_width", "vision_depth", "vision_heads", "vision_mlp"):
        value = getattr(spec, key)
        if value is not None and (spec.backbone is not None or inherited):
            reason = f"student.backbone={spec.backbone}" if spec.backbone else "the backbone of the teacher"
            raise ConfigError(f"student.{key}={value} contradicts {reason}, which has its own shape; leave it out.")


def _backbone(spec: StudentSpec, vision: Any) -> TimmVisionConfig:
    """The vision side of a timm network: the one that the spec names, else the teacher's."""
    step = STRIDES[-1]
    side = spec.image_size or max(step, (vision.image_size + step // 2) // step * step)
    require_multiple("image_size", side, step, f"{step}, the coarsest stride of a backbone")
    if spec.backbone is None:
        vision.image_size = side
        backbone_pixels(vision.backbone, side)
        return vision
    pixels = backbone_pixels(spec.backbone, side)
    return TimmVisionConfig(
        backbone=spec.backbone,
        neck=spec.neck or "pyramid",
        image_size=side,
        fpn_hidden_size=vision.fpn_hidden_size,
        head_width=vision.head_width if isinstance(vision, TimmVisionConfig) else vision.backbone_config.hidden_size,
        mean=list(pixels.mean),
        std=list(pixels.std),
    )


def _shape_image(spec: StudentSpec, config: Any) -> None:
    vision = config.vision_config.backbone_config
    patch, side = vision.patch_size, spec.image_size
    if side is None or side == vision.image_size:
        return
    require_multiple("image_size", side, patch, f"the patch size {patch}", most=LARGEST_SIDE)
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
        require_multiple("vision_width", width, per_head, f"the teacher's {per_head} channels per head")
        heads = width // per_head
    else:
        heads = spec.vision_heads
        # Rotary positions turn pairs of channels, half of them by x and half by y.
        require_multiple("vision_width", width, 4 * heads, f"4 x student.vision_heads={heads}")
    vision.hidden_size, vision.num_attention_heads = width, heads
    vision.intermediate_size = spec.vision_mlp or scaled(vision.intermediate_size, width, old_width)
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
        require_multiple("detr_width", width, step, reason)
    for part in (encoder, decoder, masks):
        part.num_attention_heads = width // (part.hidden_size // part.num_attention_heads)
        part.hidden_size = width
    for part in (encoder, decoder):
        part.intermediate_size = spec.detr_mlp or scaled(part.intermediate_size, width, old_width)
    config.vision_config.fpn_hidden_size = width
    encoder.num_layers = spec.encoder_layers or encoder.num_layers
    decoder.num_layers = spec.decoder_layers or decoder.num_layers
    decoder.num_queries = spec.num_queries or decoder.num_queries


def _summary(init: str, inherited: Inherited, net: Sam3Model) -> dict[str, Any]:
    """The share of the parameters that start from the teacher's, how many tensors by origin, and which do not."""
    counts = {origin: len(names) for origin, names in vars(inherited).items()}
    return {"init": init, "share": inherited.share(net), **counts, "fresh": list(inherited.fresh)}


def _log(summary: dict[str, Any]) -> None:
    log.log(
        logging.WARNING if summary["share"] < 0.5 else logging.INFO,
        "student.init=%s: %.0f %% of the parameters start from the teacher's; tensors: %d copied, %d sliced, "
        "%d projected, %d fresh.",
        *(summary["init"], 100 * summary["share"], summary["copied"], summary["sliced"], summary["projected"]),
        len(summary["fresh"]),
    )
