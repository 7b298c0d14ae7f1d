"""The text side of a student: SAM3's causal CLIP made smaller, a bidirectional transformer, or a MobileCLIP.

open_clip's MobileCLIP towers are one of transformers' two, weight for weight: the causal ones CLIP's, the others
Sam3LiteText's without convolutions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, PreTrainedConfig, Sam3Config, Sam3LiteTextTextConfig

from sam3dist.errors import CheckpointError, ConfigError
from sam3dist.models.widths import require_multiple, scaled

if TYPE_CHECKING:
    from sam3dist.config.distill import StudentSpec

LITE = ("lite", "repmixer")
LITE_WIDTH, LITE_DEPTH = 512, 6  # MobileCLIP-S0's
PER_HEAD = 64  # channels, of all lite and MobileCLIP towers
CAUSAL = "clip_text_model"


def shape_text(spec: StudentSpec, text: Any) -> Any:
    """The configuration of a student's text tower; `text` is its teacher's, and decides vocabulary and positions."""
    kind = spec.text_tower
    if spec.text_weights is not None and (kind is None or kind in ("clip", *LITE)):
        raise ConfigError(
            f"student.text_weights={spec.text_weights} is for a tower of open_clip; set student.text_tower to one of "
            f"{', '.join(mobile_clips())}, or leave it out."
        )
    if kind in LITE:
        width, depth = spec.text_width or LITE_WIDTH, spec.text_depth or LITE_DEPTH
        return _lite(text, width, depth, convolutions=kind == "repmixer")
    if kind not in (None, "clip"):
        return _mobile_clip(spec, text)
    if kind == "clip" and text.model_type != CAUSAL:
        own, text = text, Sam3Config().text_config
        text = _causal(own, text.hidden_size, text.num_hidden_layers, text.num_attention_heads)
    return _resized(spec, text)


def _resized(spec: StudentSpec, text: Any) -> Any:
    """The teacher's own kind, in another width and depth."""
    old_width, width = text.hidden_size, spec.text_width or text.hidden_size
    per_head = old_width // text.num_attention_heads
    require_multiple("text_width", width, per_head, f"the teacher's {per_head} channels per head")
    text.hidden_size, text.num_attention_heads = width, width // per_head
    text.intermediate_size = scaled(text.intermediate_size, width, old_width)
    text.num_hidden_layers = spec.text_depth or text.num_hidden_layers
    text.projection_dim = 1
    return text


def _mobile_clip(spec: StudentSpec, text: Any) -> Any:
    name, known = str(spec.text_tower), mobile_clips()
    if name not in known:
        raise ConfigError(
            f"student.text_tower={name} is unknown; use clip, lite, repmixer, or of open_clip {', '.join(known)}."
        )
    for key in ("text_width", "text_depth"):
        value = getattr(spec, key)
        if value is not None:
            raise ConfigError(
                f"student.{key}={value} contradicts student.text_tower={name}, which has its own; leave it out, "
                "or set student.text_tower=lite."
            )
    shape = known[name]
    width, depth, heads = shape["width"], shape["layers"], shape["heads"]
    assert width == heads * PER_HEAD
    return _lite(text, width, depth) if shape["no_causal_mask"] else _causal(text, width, depth, heads)


def _lite(text: Any, width: int, depth: int, convolutions: bool = False) -> PreTrainedConfig:
    require_multiple("text_width", width, PER_HEAD, f"{PER_HEAD} channels per head")
    return Sam3LiteTextTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=1,
        num_hidden_layers=depth,
        num_attention_heads=width // PER_HEAD,
        max_position_embeddings=text.max_position_embeddings,
        use_repmixer_blocks=convolutions,
    )


def _causal(text: Any, width: int, depth: int, heads: int) -> PreTrainedConfig:
    ids = text.vocab_size
    return CLIPTextConfig(
        vocab_size=ids,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=1,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=text.max_position_embeddings,
        hidden_act="gelu",
        bos_token_id=ids - 2,
        eos_token_id=ids - 1,
        pad_token_id=ids - 1,
    )


def mobile_clips() -> dict[str, dict[str, Any]]:
    """The text side of every MobileCLIP that open_clip knows: its width, heads, layers and whether it is causal."""
    spec = find_spec("open_clip")  # found, not imported: only its data files are wanted
    if spec is None or spec.origin is None:
        return {}
    files = (Path(spec.origin).parent / "model_configs").glob("MobileCLIP*.json")
    return {file.stem: json.loads(file.read_text(encoding="utf-8"))["text_cfg"] for file in sorted(files)}


def load_text_tower(tower: nn.Module, name: str, weights: str) -> None:
    """Fill the tower in place from a MobileCLIP of open_clip: a tag that it publishes, or a checkpoint file.

    Positions beyond the tower's own are left out: it reads shorter phrases. CheckpointError where there is no such
    tag or file, no network to download over, or another architecture inside.
    """
    import open_clip

    path = Path(weights)
    try:
        if not path.is_file():
            known = open_clip.list_pretrained_tags_by_model(name)
            if weights not in known:
                raise CheckpointError(f"neither a file nor one of open_clip's tags: {', '.join(known) or 'none'}")
            path = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, weights)))
        from open_clip.factory import load_state_dict

        state = from_open_clip(load_state_dict(str(path), device="cpu", weights_only=True), tower)
        own = tower.state_dict()
        wrong = sorted({key for key in own if "projection" not in key} ^ state.keys())
        if wrong:
            raise CheckpointError(f"another architecture: {', '.join(wrong[:3])}")
        tower.load_state_dict(state, strict=False)
    except Exception as error:  # the hub's client, torch and open_clip each raise their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"student.text_weights={weights}: no weights for {name} ({reason}).") from error


NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_open_clip(state: Mapping[str, Tensor], tower: nn.Module) -> dict[str, Tensor]:
    """open_clip's text weights under the names of this tower, CLIP's or Sam3LiteText's; its projection is left out."""
    config: Any = tower.config
    causal = config.model_type == CAUSAL
    root = "text_model." if causal else ""
    layers = f"{root}encoder.layers." if causal else "layers."
    own = {key.removeprefix("text."): value for key, value in state.items() if not key.startswith("visual.")}
    positions = own["positional_embedding"][: config.max_position_embeddings]
    place = f"{root}embeddings.position_embedding." + ("weight" if causal else "position_embedding")
    found = {place: positions if causal else positions[None, None]}
    found[f"{root}embeddings.token_embedding.weight"] = own["token_embedding.weight"]
    for key, value in own.items():
        if key.startswith("ln_final."):
            found[f"{root}final_layer_norm.{key.removeprefix('ln_final.')}"] = value
        if not key.startswith("transformer.resblocks."):
            continue
        layer, rest = key.removeprefix("transformer.resblocks.").split(".", 1)
        if rest.startswith("attn.in_proj_"):  # queries, keys and values in one matrix
            kind = rest.removeprefix("attn.in_proj_")
            for letter, part in zip("qkv", torch.chunk(value, 3), strict=True):
                found[f"{layers}{layer}.self_attn.{letter}_proj.{kind}"] = part
        else:
            name, kind = rest.rsplit(".", 1)
            found[f"{layers}{layer}.{NAMES[name]}.{kind}"] = value
    return found
