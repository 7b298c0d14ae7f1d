"""Sizes and operations that are known before a network is built."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam3Config

from sam3dist.config.distill import StudentSpec
from sam3dist.config.load import load_preset
from sam3dist.models.compositions import composition, student_shape
from sam3dist.models.flops import gigaflops
from sam3dist.models.size import model_size
from sam3dist.models.student import build_student, student_config

NECK = "sam3"


def shape(**spec):
    return student_config(StudentSpec(**spec), Sam3Config())


@pytest.mark.parametrize(
    ("spec", "millions"),
    [
        # Measured on real instances, for shared/facts/student.md: vision + text + 3/3 layers of DETR and masks.
        ({"backbone": "efficientvit_b1", "text_width": 384, "text_depth": 4}, 41.2),
        ({"backbone": "efficientvit_b1", "text_width": 256, "text_depth": 4}, 30.9),
        ({"backbone": "repvit_m1_1", "text_width": 384, "text_depth": 4}, 44.4),
        ({"backbone": "tiny_vit_11m_224", "text_width": 384, "text_depth": 4}, 47.2),
    ],
)
def test_mobile_students_have_the_measured_sizes(spec, millions):
    head = {"encoder_layers": 3, "decoder_layers": 3, "detr_mlp": 1024}
    assert model_size(shape(**spec, **head, text_tower="lite")).params_millions == pytest.approx(millions, abs=0.1)


def test_one_like_efficientsam3_has_its_89_million_parameters():
    size = model_size(shape(backbone="efficientvit_b1", neck=NECK, text_tower="repmixer"))
    assert size.params_millions == pytest.approx(89, rel=0.03)
    assert size.parts["text"] == pytest.approx(42.4, abs=0.2)
    assert sum(size.parts.values()) == pytest.approx(size.params_millions)


def test_operations_counted_without_memory_are_those_of_a_real_forward_pass(tiny_teacher):
    spec = StudentSpec(
        init="copy", backbone="mobilenetv4_conv_small_050", image_size=64, text_tower="lite", text_width=64
    )
    for segmenter in (tiny_teacher, build_student(spec, tiny_teacher, seed=1).eval()):
        net, side = segmenter.net.requires_grad_(False), segmenter.image_size
        ids = torch.zeros(1, segmenter.max_tokens, dtype=torch.int64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(pixel_values=torch.zeros(1, 3, side, side), input_ids=ids)
        assert sum(gigaflops(net.config).values()) == pytest.approx(counter.get_total_flops() / 1e9)


def test_the_operations_of_a_layer_follow_from_its_shape():
    """A text layer more: four attention and two MLP matrices for 32 tokens, and the attention of 32 by 32."""
    width, tokens = 128, 32
    deep, shallow = (gigaflops(shape(text_tower="lite", text_width=width, text_depth=depth)) for depth in (3, 2))
    matrices = 2 * tokens * (4 * width**2 + 2 * width * 4 * width)
    attention = 2 * 2 * tokens * tokens * width
    assert deep["text"] - shallow["text"] == pytest.approx((matrices + attention) / 1e9)
    assert deep["vision"] == shallow["vision"]


def test_a_composition_says_in_words_what_a_student_is_made_of():
    one = composition("phone", student_shape(load_preset("repvit")))
    assert (one.vision, one.text, one.image_size) == ("repvit_m1_1, pyramid", "CLIP 384/4", 512)
    other = composition("again", student_shape(load_preset("repvit")))
    assert other.size is one.size, "counted once"
