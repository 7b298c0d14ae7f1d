"""Meta's checkpoint cannot be shipped, so a tiny one is written under its names, by a table of its own."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam3dist.errors import CheckpointError
from sam3dist.models.checkpoint import load_segmenter, save_segmenter
from sam3dist.models.meta_weights import convert_meta_state, read_meta_checkpoint
from sam3dist.models.segmenter import Segmenter

MODULES = {  # of a Sam3Model with 2 layers everywhere and 1 in the geometry encoder: transformers -> Meta
    "vision_encoder.backbone.embeddings.patch_embeddings.projection": "backbone.vision_backbone.trunk.patch_embed.proj",
    "vision_encoder.backbone.layer_norm": "backbone.vision_backbone.trunk.ln_pre",
    "vision_encoder.neck.fpn_layers.0.scale_layers.0": "backbone.vision_backbone.convs.0.dconv_2x2_0",
    "vision_encoder.neck.fpn_layers.0.scale_layers.2": "backbone.vision_backbone.convs.0.dconv_2x2_1",
    "vision_encoder.neck.fpn_layers.1.scale_layers.0": "backbone.vision_backbone.convs.1.dconv_2x2",
    "text_encoder.text_model.embeddings.token_embedding": "backbone.language_backbone.encoder.token_embedding",
    "text_encoder.text_model.final_layer_norm": "backbone.language_backbone.encoder.ln_final",
    "text_projection": "backbone.language_backbone.resizer",
    "geometry_encoder.label_embed": "geometry_encoder.label_embed",
    "geometry_encoder.cls_embed": "geometry_encoder.cls_embed",
    "geometry_encoder.boxes_direct_project": "geometry_encoder.boxes_direct_project",
    "geometry_encoder.boxes_pool_project": "geometry_encoder.boxes_pool_project",
    "geometry_encoder.boxes_pos_enc_project": "geometry_encoder.boxes_pos_enc_project",
    "geometry_encoder.final_proj": "geometry_encoder.final_proj",
    "geometry_encoder.vision_layer_norm": "geometry_encoder.img_pre_norm",
    "geometry_encoder.prompt_layer_norm": "geometry_encoder.norm",
    "geometry_encoder.output_layer_norm": "geometry_encoder.encode_norm",
    "detr_decoder.output_layer_norm": "transformer.decoder.norm",
    "detr_decoder.query_embed": "transformer.decoder.query_embed",
    "detr_decoder.reference_points": "transformer.decoder.reference_points",
    "detr_decoder.presence_token": "transformer.decoder.presence_token",
    "detr_decoder.presence_layer_norm": "transformer.decoder.presence_token_out_norm",
    "dot_product_scoring.text_mlp_out_norm": "dot_prod_scoring.prompt_mlp.out_norm",
    "dot_product_scoring.text_proj": "dot_prod_scoring.prompt_proj",
    "dot_product_scoring.query_proj": "dot_prod_scoring.hs_proj",
    "mask_decoder.instance_projection": "segmentation_head.instance_seg_head",
    "mask_decoder.semantic_projection": "segmentation_head.semantic_seg_head",
    "mask_decoder.prompt_cross_attn_norm": "segmentation_head.cross_attn_norm",
    **{
        f"vision_encoder.neck.fpn_layers.{level}.proj{number}": f"backbone.vision_backbone.convs.{level}.{conv}"
        for level in range(4)
        for number, conv in ((1, "conv_1x1"), (2, "conv_3x3"))
    },
    **{
        f"detr_decoder.{ours}.layer{number + 1}": f"transformer.decoder.{theirs}.layers.{number}"
        for ours, theirs in (
            ("box_head", "bbox_embed"),
            ("presence_head", "presence_token_head"),
            ("ref_point_head", "ref_point_head"),
            ("box_rpb_embed_x", "boxRPB_embed_x"),
            ("box_rpb_embed_y", "boxRPB_embed_y"),
        )
        for number in range(3)
    },
    **{f"dot_product_scoring.text_mlp.layer{n + 1}": f"dot_prod_scoring.prompt_mlp.layers.{n}" for n in range(2)},
    **{
        f"mask_decoder.{part}.{n}": f"segmentation_head.{part}.{n}"
        for part in ("pixel_decoder.conv_layers", "pixel_decoder.norms")
        for n in range(3)
    },
    **{
        f"mask_decoder.mask_embedder.layers.{n}": f"segmentation_head.mask_predictor.mask_embed.layers.{n}"
        for n in range(3)
    },
}
ATTENTION = {"mask_decoder.prompt_cross_attn": "segmentation_head.cross_attend_prompt"}
for layer in range(2):
    OURS, THEIRS = f"vision_encoder.backbone.layers.{layer}", f"backbone.vision_backbone.trunk.blocks.{layer}"
    MODULES |= {f"{OURS}.layer_norm{n}": f"{THEIRS}.norm{n}" for n in (1, 2)}
    MODULES |= {f"{OURS}.mlp.fc{n}": f"{THEIRS}.mlp.fc{n}" for n in (1, 2)}
    ATTENTION[f"{OURS}.attention"] = f"{THEIRS}.attn"
    OURS = f"text_encoder.text_model.encoder.layers.{layer}"
    THEIRS = f"backbone.language_backbone.encoder.transformer.resblocks.{layer}"
    MODULES |= {f"{OURS}.layer_norm{n}": f"{THEIRS}.ln_{n}" for n in (1, 2)}
    MODULES |= {f"{OURS}.mlp.fc1": f"{THEIRS}.mlp.c_fc", f"{OURS}.mlp.fc2": f"{THEIRS}.mlp.c_proj"}
    ATTENTION[f"{OURS}.self_attn"] = f"{THEIRS}.attn"
    for OURS, THEIRS in (
        (f"detr_encoder.layers.{layer}", f"transformer.encoder.layers.{layer}"),
        (f"geometry_encoder.layers.{layer}", f"geometry_encoder.encode.{layer}"),
    ):
        MODULES |= {f"{OURS}.layer_norm{n}": f"{THEIRS}.norm{n}" for n in (1, 2, 3)}
        MODULES |= {f"{OURS}.mlp.fc{n}": f"{THEIRS}.linear{n}" for n in (1, 2)}
        ATTENTION |= {f"{OURS}.self_attn": f"{THEIRS}.self_attn", f"{OURS}.cross_attn": f"{THEIRS}.cross_attn_image"}
    OURS, THEIRS = f"detr_decoder.layers.{layer}", f"transformer.decoder.layers.{layer}"
    MODULES |= {
        f"{OURS}.self_attn_layer_norm": f"{THEIRS}.norm2",
        f"{OURS}.text_cross_attn_layer_norm": f"{THEIRS}.catext_norm",
        f"{OURS}.vision_cross_attn_layer_norm": f"{THEIRS}.norm1",
        f"{OURS}.mlp_layer_norm": f"{THEIRS}.norm3",
        f"{OURS}.mlp.fc1": f"{THEIRS}.linear1",
        f"{OURS}.mlp.fc2": f"{THEIRS}.linear2",
    }
    ATTENTION |= {
        f"{OURS}.self_attn": f"{THEIRS}.self_attn",
        f"{OURS}.text_cross_attn": f"{THEIRS}.ca_text",
        f"{OURS}.vision_cross_attn": f"{THEIRS}.cross_attn",
    }


def as_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Sam3Model's weights as Meta stores them, and what else lies in that file."""
    state, meta = dict(state), {}
    positions = state.pop("vision_encoder.backbone.embeddings.position_embeddings")
    class_token = torch.full_like(positions[:, :1], 99)
    meta["backbone.vision_backbone.trunk.pos_embed"] = torch.cat([class_token, positions], dim=1)
    text = "backbone.language_backbone.encoder"
    meta[f"{text}.positional_embedding"] = state.pop("text_encoder.text_model.embeddings.position_embedding.weight")
    meta[f"{text}.text_projection"] = state.pop("text_encoder.text_projection.weight").T
    for ours, theirs in ATTENTION.items():
        if f"{ours}.q_proj.weight" not in state:
            continue
        vision, output = ours.startswith("vision"), "out_proj" if ours.startswith("text") else "o_proj"
        for kind in ("weight", "bias"):
            fused = torch.cat([state.pop(f"{ours}.{letter}_proj.{kind}") for letter in "qkv"])
            meta[f"{theirs}.qkv.{kind}" if vision else f"{theirs}.in_proj_{kind}"] = fused
            meta[f"{theirs}.{'proj' if vision else 'out_proj'}.{kind}"] = state.pop(f"{ours}.{output}.{kind}")
    for name in list(state):
        module, _, kind = name.rpartition(".")
        meta[f"{MODULES[module]}.{kind}"] = state.pop(name)
    assert not state
    meta["backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis"] = torch.ones(4, 2, dtype=torch.complex64)
    meta["backbone.vision_backbone.sam2_convs.0.conv_1x1.weight"] = torch.ones(2)
    meta["geometry_encoder.points_pos_enc_project.bias"] = torch.ones(2)
    return {f"detector.{name}": value.clone() for name, value in meta.items()} | {
        "tracker.maskmem_tpos_enc": torch.ones(2)
    }


@pytest.fixture
def meta_state(tiny_teacher) -> dict[str, Tensor]:
    return as_meta(tiny_teacher.net.state_dict())


@pytest.mark.parametrize("envelope", [True, False])
def test_every_weight_of_metas_file_finds_its_place(tiny_teacher, meta_state, tmp_path, envelope):
    file = tmp_path / "sam3.pt"
    torch.save({"model": meta_state} if envelope else meta_state, file)
    net = read_meta_checkpoint(file, tiny_teacher.net.config)
    ours, theirs = net.state_dict(), tiny_teacher.net.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    buffers = dict(tiny_teacher.net.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    save_segmenter(
        Segmenter(net, tiny_teacher.tokenizer), tmp_path / "converted"
    )  # parts of fused tensors can be saved
    again = load_segmenter(tmp_path / "converted").net.state_dict()
    assert all(torch.equal(again[name], value) for name, value in theirs.items())


def test_a_missing_weight_is_named(tiny_teacher, meta_state, tmp_path):
    del meta_state["detector.transformer.decoder.boxRPB_embed_x.layers.1.bias"]
    torch.save(meta_state, tmp_path / "sam3.pt")
    with pytest.raises(CheckpointError, match=r"missing: detr_decoder\.box_rpb_embed_x\.layer2\.bias\.$"):
        read_meta_checkpoint(tmp_path / "sam3.pt", tiny_teacher.net.config)


def test_a_weight_nobody_knows_is_named(tiny_teacher, meta_state, tmp_path):
    meta_state["detector.backbone.adapter.weight"] = torch.ones(1)
    torch.save(meta_state, tmp_path / "sam3.pt")
    with pytest.raises(CheckpointError, match=r"unexpected: backbone\.adapter\.weight\.$"):
        read_meta_checkpoint(tmp_path / "sam3.pt", tiny_teacher.net.config)


def test_a_weight_of_another_shape_is_named(tiny_teacher, meta_state, tmp_path):
    meta_state["detector.transformer.decoder.query_embed.weight"] = torch.ones(3, 32)
    torch.save(meta_state, tmp_path / "sam3.pt")
    with pytest.raises(CheckpointError, match=r"misshapen: detr_decoder\.query_embed\.weight"):
        read_meta_checkpoint(tmp_path / "sam3.pt", tiny_teacher.net.config)


def test_the_trackers_weights_are_left_out(meta_state):
    converted = convert_meta_state(meta_state)
    assert not [name for name in converted if "tracker" in name or "sam2" in name or "points_" in name]


def test_another_models_checkpoint_is_refused(tmp_path):
    torch.save({"encoder.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"holds no weights named detector\.\*; expected Meta's sam3\.pt"):
        read_meta_checkpoint(tmp_path / "other.pt")


class Intruder:
    """Unpickled carelessly, this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, legacy):
    target, file = tmp_path / "was_here", tmp_path / "sam3.pt"
    torch.save({"model": Intruder(target)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError):
        read_meta_checkpoint(file)
    assert not target.exists()
    file.write_bytes(pickle.dumps(Intruder(target)))
    with pytest.raises(CheckpointError):
        read_meta_checkpoint(file)
    assert not target.exists()


@pytest.mark.parametrize("size", [0, 10, 50_000])
def test_a_truncated_file_is_refused(meta_state, tmp_path, size):
    file = tmp_path / "sam3.pt"
    torch.save(meta_state, file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"sam3\.pt: (not a readable|refused)"):
        read_meta_checkpoint(file)
