"""The student's resolution: every multiple of the patch size works, and anything else is told which are near."""

from __future__ import annotations

import pytest
import torch
from transformers import Sam3Config, Sam3Model

from sam3dist.config.distill import DistillConfig, StudentSpec
from sam3dist.config.load import with_overrides
from sam3dist.errors import ConfigError
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.models.student import build_student, student_config
from sam3dist.models.text import clip_tokenizer
from tests.conftest import random_batch, tiny_config

SIDES = (28, 42, 98, 126, 252, 336, 350, 504, 518, 672, 1008)
"""2 to 72 patches a side: below, at, and above SAM3's window of 24, multiples of it, primes, and odd numbers."""


@pytest.fixture(scope="module")
def large_teacher() -> Segmenter:
    """SAM3's 1008 pixels, patches, window and tiled positions, with one thin layer of everything."""
    tokenizer = clip_tokenizer(256)
    config = tiny_config(
        len(tokenizer),
        image_size=1008,
        pretrain_image_size=336,
        window_size=24,
        num_hidden_layers=1,
        global_attn_indexes=[0],
        hidden_size=16,
        num_attention_heads=1,
        intermediate_size=16,
    )
    config.detr_decoder_config.num_queries = 2
    for part in (config.detr_encoder_config, config.detr_decoder_config):
        part.num_layers = 1
    torch.manual_seed(0)
    return Segmenter(Sam3Model(config), tokenizer).eval()


@pytest.mark.parametrize("side", SIDES)
def test_a_student_of_any_multiple_of_the_patch_size_answers(side: int, large_teacher: Segmenter):
    student = build_student(StudentSpec(init="copy", image_size=side), large_teacher, seed=0).eval()
    batch = random_batch(1, 2, side=64)  # images are resized on the device
    with torch.no_grad():
        outputs = segment(student, batch)
    assert student.image_size == side
    assert outputs.mask_logits.shape == (2, 2, 4 * side // 14, 4 * side // 14)
    assert outputs.features["vision"].shape[-2:] == (side // 14, side // 14)
    assert all(tensor.isfinite().all() for tensor in (outputs.mask_logits, outputs.boxes, outputs.query_logits))


@pytest.mark.parametrize(
    ("side", "nearest"),
    [
        (29, "28 or 42"),
        (250, "238 or 252"),
        (500, "490 or 504"),
        (512, "504 or 518"),
        (1000, "994 or 1008"),
        (1024, "1022 or 1036"),
        (2048, "2044"),  # 2058 would be more than student.image_size may be
    ],
)
def test_any_other_is_refused_with_the_nearest_that_work(side: int, nearest: str):
    with pytest.raises(ConfigError) as caught:
        student_config(StudentSpec(image_size=side), Sam3Config())
    assert str(caught.value) == f"student.image_size={side} is not a multiple of the patch size 14; use {nearest}."


@pytest.mark.parametrize("side", ["14", "27", "2058"])
def test_sides_out_of_range_are_told_the_range(side: str):
    with pytest.raises(ConfigError, match=f"student.image_size={side}: must be .*at least 28 and at most 2048"):
        with_overrides(DistillConfig(), {"student.image_size": side})
