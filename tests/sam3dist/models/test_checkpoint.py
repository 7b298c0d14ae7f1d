from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import Sam3Model, Sam3Processor

from sam3dist.errors import CheckpointError
from sam3dist.models.checkpoint import load_segmenter, save_segmenter
from sam3dist.models.segmenter import segment


def test_a_saved_segmenter_answers_the_same_after_loading(tiny_teacher, make_batch, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    loaded = load_segmenter(tmp_path)
    with torch.no_grad():
        before, after = segment(tiny_teacher, make_batch()), segment(loaded, make_batch())
    assert torch.equal(before.mask_logits, after.mask_logits)
    assert torch.equal(before.boxes, after.boxes)
    assert not loaded.training


def test_a_saved_segmenter_needs_nothing_of_ours(tiny_teacher, make_batch, tmp_path):
    batch = make_batch(images=1, prompts_per_image=1)
    save_segmenter(tiny_teacher, tmp_path)
    net, info = Sam3Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = Sam3Processor.from_pretrained(tmp_path)(
        images=Image.fromarray(batch.images[0].permute(1, 2, 0).numpy()), text=batch.prompts[0], return_tensors="pt"
    )
    inputs.pop("original_sizes")
    with torch.no_grad():
        assert_close(net(**inputs).pred_masks, segment(tiny_teacher, batch).mask_logits, rtol=1e-4, atol=1e-5)


def test_weights_gathered_by_a_strategy_replace_the_modules_own(tiny_teacher, tmp_path):
    state = {key: torch.full_like(value, 0.5) for key, value in tiny_teacher.state_dict().items()}
    save_segmenter(tiny_teacher, tmp_path, state)
    loaded = load_segmenter(tmp_path)
    assert all((parameter == 0.5).all() for parameter in loaded.parameters())


def test_a_training_checkpoint_loads_its_student(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path / "student")
    assert load_segmenter(tmp_path).image_size == 112


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist; expected a directory with config\.json"):
        load_segmenter(tmp_path / "nowhere")


def test_a_directory_without_a_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_segmenter(tmp_path)


def test_a_missing_weight_is_refused_by_name(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["detr_decoder.query_embed.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: detr_decoder\.query_embed\.weight"):
        load_segmenter(tmp_path)


def test_a_weight_too_many_is_refused_by_name(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    weights = load_file(tmp_path / "model.safetensors") | {"adapter.weight": torch.ones(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected: adapter\.weight"):
        load_segmenter(tmp_path)


def test_a_weight_of_another_shape_is_refused_by_name(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["detr_decoder.query_embed.weight"] = torch.ones(3, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"detr_decoder\.query_embed\.weight"):
        load_segmenter(tmp_path)


def test_a_truncated_file_is_refused(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a readable Sam3Model"):
        load_segmenter(tmp_path)


def test_a_missing_weights_file_is_refused(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not a readable Sam3Model.*model\.safetensors"):
        load_segmenter(tmp_path)


def test_a_config_of_another_architecture_is_refused(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    with pytest.raises(CheckpointError, match="holds a 'clip' model; expected 'sam3'"):
        load_segmenter(tmp_path)


def test_a_missing_tokenizer_is_noticed_although_transformers_invents_one(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_segmenter(tmp_path)


def test_a_broken_config_is_refused(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable Sam3Model"):
        load_segmenter(tmp_path)
