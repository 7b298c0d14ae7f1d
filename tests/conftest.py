"""Fixtures for every layer: a tiny teacher, batches of blobs, and the shared data where it is mounted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, Sam3Config, Sam3Model

from sam3dist.models.checkpoint import load_segmenter, save_segmenter
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.text import clip_tokenizer
from sam3dist.types import PromptBatch, Rle

TINY_SIDE = 112
PHRASES = ("red circle", "blue square", "a dog", "green triangle", "striped cat", "small yellow fish")


def tiny_config(vocabulary: int, **vision: object) -> Sam3Config:
    """A Sam3Config of about 250k parameters: 112 pixels, 8 x 8 patches, every width 32."""
    width = 32
    heads = {"hidden_size": width, "num_attention_heads": 2, "intermediate_size": 64}
    backbone = {
        "model_type": "sam3_vit_model",
        "num_hidden_layers": 2,
        "image_size": TINY_SIDE,
        "pretrain_image_size": TINY_SIDE,
        "patch_size": 14,
        "window_size": 4,
        "global_attn_indexes": [1],
        **heads,
        **vision,
    }
    return Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": width,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config=CLIPTextConfig(
            vocab_size=vocabulary,
            num_hidden_layers=2,
            max_position_embeddings=32,
            projection_dim=16,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
            **heads,
        ),
        geometry_encoder_config={"num_layers": 1, "roi_size": 3, **heads},
        detr_encoder_config={"num_layers": 2, **heads},
        detr_decoder_config={"num_layers": 2, "num_queries": 8, **heads},
        mask_decoder_config={"hidden_size": width, "num_attention_heads": 2},
    )


@pytest.fixture(scope="session")
def tiny_teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Sam3Model with its tokenizer, in the transformers format."""
    tokenizer = clip_tokenizer(256)
    torch.manual_seed(0)
    net = Sam3Model(tiny_config(len(tokenizer)))
    directory = tmp_path_factory.mktemp("tiny_teacher")
    save_segmenter(Segmenter(net, tokenizer), directory)
    return directory


@pytest.fixture
def tiny_teacher(tiny_teacher_dir: Path) -> Segmenter:
    """The tiny teacher, in eval mode; a fresh copy for each test."""
    return load_segmenter(tiny_teacher_dir)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., PromptBatch]:
    """make_batch(images=2, prompts_per_image=2, seed=0, side=112): random blobs and phrases.

    The first prompt of each image is present; the last is absent when there are two or more.
    """
    return random_batch


def random_batch(images: int = 2, prompts_per_image: int = 2, seed: int = 0, side: int = TINY_SIDE) -> PromptBatch:
    """A PromptBatch of ellipses on noise; each present phrase has one or two instances."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 90, (images, 3, side, side), dtype=np.uint8)
    masks: list[tuple[Rle, ...]] = []
    present: list[bool] = []
    for image in range(images):
        for prompt in range(prompts_per_image):
            present.append(prompt == 0 or prompt < prompts_per_image - 1)
            blobs = [ellipse(side, generator) for _ in range(1 + prompt % 2)] if present[-1] else []
            for blob in blobs:
                pixels[image, prompt % 3][blob] = generator.integers(160, 255)
            masks.append(tuple(run_lengths(blob) for blob in blobs))
    count = images * prompts_per_image
    return PromptBatch(
        images=torch.from_numpy(pixels),
        image_ids=tuple(range(images)),
        image_sizes=((side, side),) * images,
        prompts=tuple(PHRASES[index % len(PHRASES)] for index in range(count)),
        image_of_prompt=torch.arange(images).repeat_interleave(prompts_per_image),
        present=torch.tensor(present),
        masks=tuple(masks),
        ignore=(None,) * count,
        exhaustive=torch.ones(count, dtype=torch.bool),
    )


def ellipse(side: int, generator: np.random.Generator) -> np.ndarray:
    """A filled ellipse [side, side] bool, at least a tenth of the side across."""
    radius_y, radius_x = generator.uniform(0.1, 0.3, 2) * side
    center_y, center_x = generator.uniform(0.3, 0.7, 2) * side
    y, x = np.mgrid[:side, :side]
    return ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 <= 1


def run_lengths(mask: np.ndarray) -> Rle:
    """Uncompressed COCO run lengths, written here on its own so that tests do not lean on the code they test."""
    flat = mask.flatten(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0, append=2))
    counts = np.diff(changes, prepend=0)
    return Rle(*mask.shape, counts=counts.astype(np.uint32))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder shared beside the checkout; tests that need it are skipped where it is not mounted."""
    directory = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not directory.is_dir():
        pytest.skip(f"no shared data at {directory}")
    return directory
