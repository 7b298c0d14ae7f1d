from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from sam3dist.models.segmenter import Pupil, segment
from sam3dist.models.text import tokenize


def test_one_phrase_per_image_answers_exactly_as_plain_sam3model(tiny_teacher, make_batch):
    batch = make_batch(images=3, prompts_per_image=1)
    ids, mask = tokenize(tiny_teacher.tokenizer, batch.prompts)
    pixels = (batch.images.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        plain = tiny_teacher.net(pixel_values=pixels, input_ids=ids, attention_mask=mask)
        ours = segment(tiny_teacher, batch)
    tight = {"rtol": 1e-5, "atol": 1e-5}
    assert_close(ours.mask_logits, plain.pred_masks, **tight)
    assert_close(ours.query_logits, plain.pred_logits, **tight)
    assert_close(ours.boxes, plain.pred_boxes, **tight)
    assert_close(ours.presence_logits, plain.presence_logits[:, 0], **tight)
    assert_close(ours.semantic_logits, plain.semantic_seg[:, 0], **tight)


def test_several_phrases_of_an_image_answer_as_if_asked_alone(tiny_teacher, make_batch):
    batch = make_batch(images=2, prompts_per_image=3)
    with torch.no_grad():
        together = tiny_teacher(batch.images, batch.image_of_prompt, batch.prompts, auxiliary=True)
        for index, phrase in enumerate(batch.prompts):
            image = batch.images[batch.image_of_prompt[index]][None]
            alone = tiny_teacher(image, torch.tensor([0]), (phrase,), auxiliary=True)
            for name in ("mask_logits", "query_logits", "boxes", "presence_logits", "semantic_logits"):
                assert_close(together[name][index], alone[name][0], rtol=1e-4, atol=1e-5)
            assert_close(together["features.encoder"][index], alone["features.encoder"][0], rtol=1e-4, atol=1e-5)
            assert_close(together["auxiliary.boxes"][:, index], alone["auxiliary.boxes"][:, 0], rtol=1e-4, atol=1e-5)


def test_auxiliary_layers_are_what_a_decoder_cut_after_them_predicts(tiny_teacher, make_batch):
    batch = make_batch()
    with torch.no_grad():
        full = segment(tiny_teacher, batch, auxiliary=True)
        tiny_teacher.net.detr_decoder.layers = tiny_teacher.net.detr_decoder.layers[:1]
        cut = segment(tiny_teacher, batch)
    (first,) = full.auxiliary
    assert_close(first.query_logits, cut.query_logits)
    assert_close(first.boxes, cut.boxes)
    assert_close(first.presence_logits, cut.presence_logits)
    assert cut.auxiliary == ()


def test_shapes_follow_the_letters(tiny_teacher, make_batch):
    outputs = segment(tiny_teacher, make_batch(images=2, prompts_per_image=3), auxiliary=True)
    assert outputs.mask_logits.shape == (6, 8, 32, 32)
    assert outputs.query_logits.shape == (6, 8)
    assert outputs.boxes.shape == (6, 8, 4)
    assert outputs.presence_logits.shape == (6,)
    assert outputs.semantic_logits.shape == (6, 32, 32)
    assert outputs.features["vision"].shape == (2, 32, 8, 8)
    assert outputs.features["encoder"].shape == (6, 32, 8, 8)
    assert len(outputs.auxiliary) == 1


def test_images_of_another_size_are_resized_to_the_networks(tiny_teacher, make_batch):
    large = make_batch(side=224)
    shrunk = torch.nn.functional.interpolate(large.images.float(), size=112, mode="bilinear", antialias=True)
    pixels = shrunk / 127.5 - 1
    ids, mask = tokenize(tiny_teacher.tokenizer, [large.prompts[0]])
    with torch.no_grad():
        outputs = segment(tiny_teacher, large)
        plain = tiny_teacher.net(pixel_values=pixels[:1], input_ids=ids, attention_mask=mask)
    assert_close(outputs.boxes[:1], plain.pred_boxes, rtol=1e-4, atol=1e-5)


def test_auxiliary_outputs_and_masks_all_pass_gradients(tiny_teacher, make_batch):
    outputs = segment(tiny_teacher, make_batch(), auxiliary=True)
    layer = outputs.auxiliary[0]
    for tensor in (
        outputs.mask_logits,
        outputs.semantic_logits,
        layer.boxes,
        layer.query_logits,
        layer.presence_logits,
    ):
        (gradient,) = torch.autograd.grad(tensor.sum(), tiny_teacher.net.text_projection.weight, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_pupil_projects_only_the_features_it_imitates(tiny_teacher, make_batch):
    batch = make_batch()
    pupil = Pupil(tiny_teacher, {"vision": 48})
    outputs = segment(pupil, batch)
    assert outputs.features.keys() == {"vision"}
    assert outputs.features["vision"].shape == (2, 48, 8, 8)
    same = Pupil(tiny_teacher, {"vision": 32, "encoder": 32})
    assert sum(p.numel() for p in same.projections.parameters()) == 0
    assert_close(segment(same, batch).mask_logits, segment(tiny_teacher, batch).mask_logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_leaves_small_outputs_in_float32(tiny_teacher, make_batch, dtype):
    batch = make_batch()
    with torch.no_grad():
        exact = segment(tiny_teacher, batch)
        tiny_teacher.autocast = dtype
        rough = segment(tiny_teacher, batch)
    assert rough.boxes.dtype == rough.query_logits.dtype == rough.presence_logits.dtype == torch.float32
    assert rough.mask_logits.dtype == dtype
    assert_close(rough.boxes, exact.boxes, rtol=0, atol=0.02)
