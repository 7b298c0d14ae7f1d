"""A small network of the real SAM3 architecture, before it has learned anything: the embedded teacher's shape."""

from __future__ import annotations

import torch
from transformers import Sam3Config, Sam3Model

from sam3dist.data.samples.live import IMAGE_SIZE
from sam3dist.models.geometry import UNTRAINED
from sam3dist.models.segmenter import Segmenter, freeze_unused
from sam3dist.models.text import clip_tokenizer

PATCH_SIZE = 8
VISION_WIDTH = 128
DETR_WIDTH = 64
TEXT_WIDTH = 64
MERGES = 3582  # 512 byte tokens + 3582 merges + 2 marks = 4096 tokens; every phrase still tokenises


def reduced_sam3(seed: int) -> Segmenter:
    """2.3 million random parameters: 12 x 12 patches, 48 x 48 mask cells, 16 queries."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer(MERGES)
    grid = IMAGE_SIZE // PATCH_SIZE
    detr = {"hidden_size": DETR_WIDTH, "num_attention_heads": 4, "intermediate_size": 256, "dropout": 0.0}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": VISION_WIDTH,
                "intermediate_size": 3 * VISION_WIDTH,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "image_size": IMAGE_SIZE,
                "pretrain_image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
                "window_size": grid // 2,
                "global_attn_indexes": [1, 3, 5],
            },
            "fpn_hidden_size": DETR_WIDTH,
            "backbone_feature_sizes": [[grid * scale] * 2 for scale in (4, 2, 1)],
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "projection_dim": TEXT_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        geometry_encoder_config={**detr, "num_layers": 1, "roi_size": 3},
        detr_encoder_config={**detr, "num_layers": 2},
        detr_decoder_config={**detr, "num_layers": 3, "num_queries": 16},
        mask_decoder_config={"hidden_size": DETR_WIDTH, "num_attention_heads": 4, "num_upsampling_stages": 2},
    )
    setattr(config, UNTRAINED, True)
    net = Sam3Model(config)
    _spread_reference_boxes(net)
    freeze_unused(net)
    return Segmenter(net, tokenizer)


def _spread_reference_boxes(net: Sam3Model) -> None:
    """Starts the queries on a grid of boxes, each a third of the image; SAM3 starts them all in the middle."""
    points = net.detr_decoder.reference_points.weight
    side = int(points.shape[0] ** 0.5)
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    boxes = torch.stack([x, y, torch.full_like(x, 0.33), torch.full_like(x, 0.33)], dim=-1).reshape(-1, 4)
    with torch.no_grad():
        points[: len(boxes)] = torch.logit(boxes)
