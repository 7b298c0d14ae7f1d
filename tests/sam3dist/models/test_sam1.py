"""SAM's answers against SamModel, its processor and peft, asked directly."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import SamImageProcessor

from sam3dist.errors import CheckpointError, ConfigError
from sam3dist.models.sam1 import SamTeacher, fitted, load_sam, unframed
from tests.sam3dist.cases import batch_of, rectangle
from tests.sam3dist.tiny_sam import CELLS, SIDE, lora, save_tiny_sam, tiny_sam

BOXES = [[10.0, 4.0, 40.0, 28.0], [0.0, 20.0, 20.0, 48.0], [30.0, 8.0, 64.0, 40.0]]
"""In pixels of an image 48 high and 64 wide."""


def processor() -> SamImageProcessor:
    """The processor of transformers at the size of the tiny SAM."""
    return SamImageProcessor(
        size={"longest_edge": SIDE},
        pad_size={"height": SIDE, "width": SIDE},
        mask_size={"longest_edge": CELLS},
        mask_pad_size={"height": CELLS, "width": CELLS},
    )


def smooth_image(height: int, width: int) -> torch.Tensor:
    """A uint8 image [3, height, width] without detail that any resizing would lose."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
    return (torch.stack([x.sin(), (x + y).cos(), y.sin()]) * 100 + 128).to(torch.uint8)


def asked(height: int = 48, width: int = 64):
    """One image with three prompts: two instances, none, and one."""
    boxes = [rectangle(int(t), int(left), int(b), int(r), height, width) for left, t, r, b in BOXES]
    batch = batch_of(boxes[:2], [], boxes[2:])
    squashed = F.interpolate(smooth_image(height, width)[None].float(), size=(SIDE, SIDE), mode="bilinear")
    return replace(batch, images=squashed.round().to(torch.uint8), image_sizes=((height, width),))


def said_by_transformers(net, height: int, width: int):
    """The mask logits [3, height, width] over the original image, and the IoUs [3], for BOXES."""
    tools = processor()
    seen = tools(smooth_image(height, width), return_tensors="pt")
    with torch.no_grad():
        said = net(pixel_values=seen["pixel_values"], input_boxes=torch.tensor([BOXES]), multimask_output=False)
    (masks,) = tools.post_process_masks(
        said.pred_masks, seen["original_sizes"], seen["reshaped_input_sizes"], binarize=False
    )
    return masks[:, 0], said.iou_scores[0, :, 0]


def test_answers_are_those_of_sam_asked_with_its_own_processor():
    outputs = SamTeacher(tiny_sam())(asked())
    masks, ious = said_by_transformers(tiny_sam(), 48, 64)
    assert outputs.mask_logits.shape == (3, 3, CELLS, CELLS)  # two instances at most, and background
    ours = outputs.mask_logits[[0, 0, 2], [0, 1, 0]]
    ours = F.interpolate(ours[None], size=(48, 64), mode="bilinear", align_corners=False)[0]
    # A random network's masks are noise, which resizing to 32 x 32 cells and back smoothes a little.
    assert (ours - masks).abs().mean() < 0.2 * masks.std()
    assert np.corrcoef(ours.flatten(), masks.flatten())[0, 1] > 0.97
    assert_close(outputs.query_logits[[0, 0, 2], [0, 1, 0]].sigmoid(), ious.clamp(0.01, 0.99), rtol=0, atol=0.05)


def test_answers_about_a_square_image_are_exactly_those_of_sam():
    batch = asked(SIDE, SIDE)
    outputs = SamTeacher(tiny_sam())(batch)
    seen = processor()(batch.images[0], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        said = tiny_sam()(pixel_values=seen, input_boxes=torch.tensor([BOXES]), multimask_output=False)
    assert_close(outputs.mask_logits[[0, 0, 2], [0, 1, 0]], said.pred_masks[0, :, 0], rtol=1e-4, atol=1e-5)
    expected = said.iou_scores[0, :, 0].clamp(0.01, 0.99)
    assert_close(outputs.query_logits[[0, 0, 2], [0, 1, 0]].sigmoid(), expected)


def test_boxes_go_around_the_masks_and_stay_as_prompted_where_a_mask_is_empty():
    net = tiny_sam()
    outputs = SamTeacher(net)(asked())
    rows, columns = np.nonzero((outputs.mask_logits[0, 0] > 0).numpy())
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert outputs.boxes[0, 0].tolist() == pytest.approx([edge / CELLS for edge in expected])
    for weight in net.mask_decoder.upscale_conv2.parameters():
        weight.fill_(0)  # now all masks are 0, which is not above 0
    left, top, right, bottom = BOXES[1]
    empty = SamTeacher(net)(asked())
    assert empty.boxes[0, 1].tolist() == pytest.approx([left / 64, top / 48, right / 64, bottom / 48])


def test_presence_is_the_label_and_a_negative_has_nothing():
    outputs = SamTeacher(tiny_sam())(asked())
    assert outputs.presence_logits.tolist() == [8, -8, 8]
    assert outputs.query_logits[1].tolist() == [-8, -8, -8]
    assert (outputs.semantic_logits[1] == -8).all()
    assert torch.equal(outputs.semantic_logits[0], outputs.mask_logits[0, :2].amax(0))
    assert torch.equal(outputs.semantic_logits[2], outputs.mask_logits[2, 0])


def test_every_prompt_has_background_and_queries_beyond_its_instances_are_only_that():
    outputs = SamTeacher(tiny_sam())(asked())
    assert outputs.query_logits[0, 2] == -8
    assert outputs.query_logits[2, 1:].tolist() == [-8, -8]
    assert (outputs.mask_logits[2, 1:] == -8).all()


def test_a_crowd_is_marked_in_the_semantic_map_as_it_is_labelled():
    crowd = rectangle(0, 0, 24, 32, 48, 64)
    batch = replace(asked(), ignore=(None, None, None), present=torch.tensor([True, True, True]))
    with_crowd = SamTeacher(tiny_sam())(replace(batch, ignore=(None, crowd, None))).semantic_logits[1]
    assert (with_crowd[:16, :16] == 8).all()
    assert (with_crowd[16:] == -8).all()
    assert (with_crowd[:, 16:] == -8).all()


def test_a_batch_of_negatives_is_answered_without_the_encoder():
    net = tiny_sam()
    net.vision_encoder = None
    outputs = SamTeacher(net)(replace(batch_of([], []), images=torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)))
    assert outputs.mask_logits.shape == (2, 1, CELLS, CELLS)
    assert outputs.presence_logits.tolist() == [-8, -8]


def test_prompts_of_several_images_are_answered_as_each_image_alone():
    one, other = asked(48, 64), asked(SIDE, SIDE)
    other = replace(other, images=other.images.flip(1))
    both = replace(
        one,
        images=torch.cat([one.images, other.images]),
        image_ids=(0, 1),
        image_sizes=one.image_sizes + other.image_sizes,
        prompts=one.prompts * 2,
        image_of_prompt=torch.tensor([1, 1, 1, 0, 0, 0]),
        present=one.present.repeat(2),
        masks=other.masks + one.masks,
        ignore=one.ignore * 2,
        exhaustive=one.exhaustive.repeat(2),
    )
    teacher = SamTeacher(tiny_sam())
    together, alone = teacher(both), (teacher(other), teacher(one))
    for name in ("mask_logits", "query_logits", "boxes", "semantic_logits"):
        assert_close(getattr(together, name), torch.cat([getattr(each, name) for each in alone]), msg=name)


def test_an_image_keeps_its_shape_in_the_frame():
    for height, width in ((480, 640), (640, 480), (1024, 1024), (333, 1000), (77, 991)):
        with_processor = processor()(torch.zeros(3, height, width, dtype=torch.uint8), return_tensors="pt")
        expected = with_processor["reshaped_input_sizes"][0].tolist()
        assert list(fitted((height, width), SIDE)) == expected
    assert fitted((1, 3000), SIDE) == (1, SIDE)  # where the processor fails


def test_maps_over_the_frame_are_cut_as_the_processor_cuts_them():
    smooth = smooth_image(CELLS, CELLS).float() / 100
    for height, width in ((48, 64), (64, 30)):
        shares = tuple(extent / SIDE for extent in fitted((height, width), SIDE))
        ours = F.interpolate(unframed(smooth, shares)[None], size=(height, width), mode="bilinear")[0]
        (theirs,) = processor().post_process_masks(
            smooth[:, None][None], [(height, width)], [fitted((height, width), SIDE)], binarize=False
        )
        assert_close(ours[:, 2:-2, 2:-2], theirs[:, 0, 2:-2, 2:-2], rtol=0, atol=0.02)


def test_half_precision_is_for_the_encoder_and_changes_little(tmp_path):
    save_tiny_sam(tmp_path)
    exact, rough = (load_sam(tmp_path, None, "cpu", precision)(asked()) for precision in ("fp32", "bf16"))
    assert not torch.equal(exact.mask_logits, rough.mask_logits)
    assert rough.mask_logits.dtype == torch.float32
    assert (rough.mask_logits - exact.mask_logits).abs().mean() < 0.02


def test_a_merged_adapter_answers_as_peft_does_without_merging(tmp_path):
    unmerged = lora(tmp_path / "adapter")
    adapted = load_sam(save_tiny_sam(tmp_path / "sam"), str(tmp_path / "adapter"), "cpu", "fp32")
    assert not any("lora" in name for name, _ in adapted.net.named_parameters())
    batch = asked(SIDE, SIDE)
    seen = processor()(batch.images[0], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        said = unmerged(pixel_values=seen, input_boxes=torch.tensor([BOXES]), multimask_output=False)
    ours = adapted(batch).mask_logits[[0, 0, 2], [0, 1, 0]]
    assert_close(ours, said.pred_masks[0, :, 0], rtol=1e-3, atol=1e-4)
    bare = load_sam(tmp_path / "sam", None, "cpu", "fp32")(batch).mask_logits[[0, 0, 2], [0, 1, 0]]
    assert (ours - bare).abs().max() > 0.1


def test_an_adapter_without_peft_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"teacher\.adapter=there needs peft; pip install 'sam3dist\[sam\]'"):
        load_sam(save_tiny_sam(tmp_path), "there", "cpu", "fp32")


def test_an_adapter_that_does_not_fit_is_refused_in_one_line(tmp_path):
    sam, folder = save_tiny_sam(tmp_path / "sam"), tmp_path / "adapter"
    lora(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    first = next(iter(weights))

    def refusal() -> str:
        with pytest.raises(CheckpointError, match=r"teacher\.adapter=") as caught:
            load_sam(sam, str(folder), "cpu", "fp32")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    save_file({name: value for name, value in weights.items() if name != first}, folder / "adapter_model.safetensors")
    assert "missing" in refusal()
    save_file({**weights, "base_model.model.other.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")
    assert "unexpected" in refusal()
    save_file({**weights, first: torch.ones(4, 7)}, folder / "adapter_model.safetensors")
    assert "fits no SAM" in refusal()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["nothing_of_sams"]}))
    assert "fits no SAM" in refusal()
    (folder / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors there" in refusal()


def test_a_sam_with_missing_weights_is_refused(tmp_path):
    save_tiny_sam(tmp_path)
    weights = load_file(Path(tmp_path / "model.safetensors"))
    weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: mask_decoder\.iou_token\.weight"):
        load_sam(tmp_path, None, "cpu", "fp32")
