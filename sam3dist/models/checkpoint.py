"""Segmenters on disk: the plain transformers format, readable with nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Sam3Model

from sam3dist.errors import CheckpointError
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.text import load_tokenizer


def save_segmenter(segmenter: Segmenter, directory: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write config.json, model.safetensors and the tokenizer.

    `state` replaces the weights, for strategies that hold them in shards; its keys are those of
    `segmenter.state_dict()`, or of its `net`.
    """
    if state is not None:
        state = {key.removeprefix("net."): value.contiguous() for key, value in state.items()}
    segmenter.net.save_pretrained(directory, state_dict=state)
    segmenter.tokenizer.save_pretrained(directory)


def load_segmenter(directory: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter saved in a directory, or in the `student/` of a training checkpoint, in eval mode and float32.

    Every weight must be there, in its shape, and none may be left over; else CheckpointError.
    """
    root = Path(directory)
    if (root / "student" / "config.json").is_file():
        root = root / "student"
    if not (root / "config.json").is_file():
        problem = "has no config.json" if root.is_dir() else "does not exist"
        raise CheckpointError(f"{root} {problem}; expected a directory with config.json and model.safetensors.")
    net = read_net(str(root))
    return Segmenter(net, load_tokenizer(root)).to(device).eval()


def read_net(dir_or_id: str) -> Sam3Model:
    """The float32 Sam3Model of a directory or a Hugging Face id, strictly: each key fits, none is missing or over."""
    try:
        net, info = Sam3Model.from_pretrained(
            dir_or_id, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{dir_or_id}: not a readable Sam3Model ({first_line}).") from error
    require_exact(
        dir_or_id, missing=info["missing_keys"], unexpected=info["unexpected_keys"], misshapen=info["mismatched_keys"]
    )
    return net


def require_exact(source: object, **problems: object) -> None:
    """Raise CheckpointError that names the first few keys of the first non-empty collection in `problems`."""
    for kind, found in problems.items():
        keys = sorted(str(key) for key in found)  # type: ignore[attr-defined]
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(f"{source}: weights of another architecture; {kind}: {', '.join(keys[:3])}{more}.")
