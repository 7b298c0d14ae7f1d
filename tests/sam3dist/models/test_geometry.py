"""The geometry token against transformers' own path for boxes, and against Meta's layers written with torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from sam3dist.config.distill import StudentSpec
from sam3dist.errors import ConfigError
from sam3dist.models.checkpoint import save_segmenter
from sam3dist.models.geometry import geometry_token, uses_geometry_token
from sam3dist.models.reduced import reduced_sam3
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.models.student import build_student, student_config
from sam3dist.models.teacher import load_teacher
from sam3dist.models.text import tokenize
from tests.sam3dist.models.test_meta_weights import as_meta

TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def shaken(segmenter: Segmenter) -> Segmenter:
    """With weights that no two modules share: fresh norms and biases are ones and zeros everywhere."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in segmenter.net.geometry_encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return segmenter


def test_the_answer_is_that_of_transformers_to_boxes_that_are_all_padding(tiny_teacher, make_batch):
    """Padding hides the only box, so what its forward appends to the text is the class token and a masked one."""
    teacher = shaken(tiny_teacher)
    batch = make_batch(images=3, prompts_per_image=1)
    ids, mask = tokenize(teacher.tokenizer, batch.prompts)
    teacher.geometry_token = True
    with torch.no_grad():
        plain = teacher.net(
            pixel_values=batch.images.float() / 127.5 - 1,
            input_ids=ids,
            attention_mask=mask,
            input_boxes=torch.full((3, 1, 4), 0.5),
            input_boxes_labels=torch.full((3, 1), -10),
        )
        ours = segment(teacher, batch)
        teacher.geometry_token = False
        without = segment(teacher, batch)
    assert_close(ours.mask_logits, plain.pred_masks, **TIGHT)
    assert_close(ours.query_logits, plain.pred_logits, **TIGHT)
    assert_close(ours.boxes, plain.pred_boxes, **TIGHT)
    assert_close(ours.presence_logits, plain.presence_logits[:, 0], **TIGHT)
    assert_close(ours.semantic_logits, plain.semantic_seg[:, 0], **TIGHT)
    assert (ours.query_logits - without.query_logits).abs().max() > 1e-3  # so the comparison can fail


def attention(weights: dict[str, Tensor], name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """nn.MultiheadAttention, as Meta uses it: sequence first, projections fused."""
    return F.multi_head_attention_forward(
        query,
        key,
        value,
        embed_dim_to_check=query.shape[-1],
        num_heads=2,
        in_proj_weight=weights[f"{name}.in_proj_weight"],
        in_proj_bias=weights[f"{name}.in_proj_bias"],
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=weights[f"{name}.out_proj.weight"],
        out_proj_bias=weights[f"{name}.out_proj.bias"],
        need_weights=False,
    )[0]


def metas_token(weights: dict[str, Tensor], level: Tensor, place: Tensor) -> Tensor:
    """What Meta's SequenceGeometryEncoder gives for a prompt without boxes, from Meta's own weights: [1, B, C].

    Pre-norm layers; positions at the keys of the cross attention only (`_create_geometry_encoder`).
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    memory, positions = (tensor.flatten(2).permute(2, 0, 1) for tensor in (level, place))
    x = weights["cls_embed.weight"].view(1, 1, -1).repeat(1, level.shape[0], 1)
    x = norm("norm", linear("final_proj", x))
    x = x + attention(weights, "encode.0.self_attn", *[norm("encode.0.norm1", x)] * 3)
    queries = norm("encode.0.norm2", x)
    x = x + attention(weights, "encode.0.cross_attn_image", queries, memory + positions, memory)
    x = x + linear("encode.0.linear2", linear("encode.0.linear1", norm("encode.0.norm3", x)).relu())
    return norm("encode_norm", x)


def test_the_token_is_the_one_metas_layers_make_of_metas_weights(tiny_teacher):
    teacher = shaken(tiny_teacher)
    meta, start = as_meta(teacher.net.state_dict()), "detector.geometry_encoder."
    weights = {name.removeprefix(start): value for name, value in meta.items() if name.startswith(start)}
    level, place = torch.randn(3, 32, 8, 8), torch.randn(1, 32, 8, 8)
    with torch.no_grad():
        ours = geometry_token(teacher.net.geometry_encoder, level, place)
    assert_close(ours.transpose(0, 1), metas_token(weights, level, place.expand(3, -1, -1, -1)), **TIGHT)


def test_phrases_of_an_image_share_its_token(tiny_teacher, make_batch):
    teacher = shaken(tiny_teacher)
    teacher.geometry_token = True
    batch = make_batch(images=2, prompts_per_image=3)
    with torch.no_grad():
        together = segment(teacher, batch)
        for index, phrase in enumerate(batch.prompts):
            image = batch.images[batch.image_of_prompt[index]][None]
            alone = teacher(image, torch.tensor([0]), (phrase,))
            assert_close(together.query_logits[index], alone["query_logits"][0], rtol=1e-4, atol=1e-5)


def test_a_network_of_sam3s_shape_is_asked_as_it_was_trained(tiny_teacher_dir, tiny_teacher, make_batch):
    assert load_teacher(tiny_teacher_dir).geometry_token
    assert not load_teacher(tiny_teacher_dir, geometry_token=False).geometry_token
    assert not load_teacher("embedded").geometry_token  # its geometry encoder has never been trained
    assert load_teacher("embedded", geometry_token=True).geometry_token
    tiny_teacher.geometry_token = True
    loaded = segment(load_teacher(tiny_teacher_dir), make_batch())
    assert torch.equal(loaded.boxes, segment(tiny_teacher, make_batch()).boxes.detach())


def test_who_has_no_geometry_encoder_is_asked_without_the_token(tiny_teacher, tmp_path):
    student = build_student(StudentSpec(init="copy", detr_width=16), tiny_teacher, seed=0)
    save_segmenter(student, tmp_path)
    assert not load_teacher(tmp_path).geometry_token
    with pytest.raises(ConfigError, match=r"teacher\.geometry_token=true: this network has no geometry encoder"):
        load_teacher(tmp_path, geometry_token=True)
    narrow = student_config(StudentSpec(detr_width=16), tiny_teacher.net.config)
    narrow.detr_encoder_config.hidden_size = narrow.geometry_encoder_config.hidden_size  # it has no layers either
    assert not uses_geometry_token(narrow, None)


def test_the_mark_of_an_untrained_geometry_encoder_is_saved_with_the_network(tmp_path):
    network = reduced_sam3(seed=0)
    assert not uses_geometry_token(network.net.config, None)
    save_segmenter(network, tmp_path)
    assert not load_teacher(tmp_path).geometry_token


def test_a_teacher_in_half_precision_has_the_token_too(tiny_teacher_dir, make_batch):
    exact, rough = load_teacher(tiny_teacher_dir), load_teacher(tiny_teacher_dir, precision="bf16")
    assert_close(segment(rough, make_batch()).boxes, segment(exact, make_batch()).boxes, rtol=0, atol=0.02)
