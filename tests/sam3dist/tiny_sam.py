"""A tiny random SAM whose answers differ from box to box, and adapters for it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SamConfig, SamModel

from sam3dist.models.checkpoint import quiet_transformers

SIDE, CELLS = 64, 32


def tiny_sam() -> SamModel:
    """About 50k parameters: 64 pixels, 8 x 8 patches, masks of 32 x 32."""
    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    net = SamModel(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, weight in net.named_parameters():  # its own initialisation is so small that all answers are 0
        if weight.dim() > 1:
            scale = 1.0 if "embed" in name or "token" in name else weight[0].numel() ** -0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    net.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.5)
    return net


def save_tiny_sam(directory: Path) -> Path:
    with quiet_transformers():
        tiny_sam().save_pretrained(directory)
    return directory


def lora(directory: Path):  # type: ignore[no-untyped-def]
    """A random LoRA adapter saved by peft, and peft's own model that has it, not merged."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules=["qkv", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(tiny_sam(), config).eval()
    wrapped.save_pretrained(directory)
    return wrapped
