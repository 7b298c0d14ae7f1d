"""Segmenters on disk: the plain transformers format, readable with nothing of ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor
from transformers.utils import logging

from sam3dist.errors import CheckpointError, first_line
from sam3dist.models.network import MODEL_TYPES, as_config, network_class
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.text import load_tokenizer, text_rule


def save_segmenter(
    segmenter: Segmenter,
    directory: str | Path,
    state: Mapping[str, Tensor] | None = None,
    max_shard_mb: int = 50_000,
) -> None:
    """Write config.json, model.safetensors, the tokenizer and the settings of the processor.

    That is all that transformers' own Sam3Processor and Sam3Model need to answer as this segmenter does; a network
    that is no Sam3Model brings the file with its class, which AutoModel loads with trust_remote_code=True.
    `state` replaces the weights, for strategies that hold them in shards; its keys are those of
    `segmenter.state_dict()`, or of its `net`. Weights of more than `max_shard_mb` megabytes become several files.
    """
    if state is not None:
        state = {key.removeprefix("net."): value.contiguous() for key, value in state.items()}
    with quiet_transformers():
        segmenter.net.save_pretrained(directory, state_dict=state, max_shard_size=f"{max_shard_mb}MB")
    side, mask_side = segmenter.image_size, 4 * segmenter.grid
    pictures = Sam3ImageProcessor(
        size={"height": side, "width": side}, mask_size={"height": mask_side, "width": mask_side}
    )
    Sam3Processor(pictures, segmenter.tokenizer).save_pretrained(directory)


def load_segmenter(directory: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter saved in a directory, or in the `student/` of a training checkpoint, in eval mode and float32.

    Every weight must be there, in its shape, and none may be left over; else CheckpointError.
    """
    return read_segmenter(str(network_root(directory))).to(device)


def network_root(directory: str | Path) -> Path:
    """Where the network's files are: here, or in the `student/` of a training checkpoint; else CheckpointError."""
    root = Path(directory)
    if (root / "student" / "config.json").is_file():
        root = root / "student"
    if not (root / "config.json").is_file():
        problem = "has no config.json" if root.is_dir() else "does not exist"
        raise CheckpointError(f"{root} {problem}; expected a directory with config.json and model.safetensors.")
    return root


def read_config(dir_or_id: str) -> Sam3Config:
    """The configuration of `read_segmenter`'s network, without its weights."""
    try:
        with quiet_transformers():
            content = PreTrainedConfig.get_config_dict(dir_or_id)[0]
            require_sam3(dir_or_id, content.get("model_type"))
            return as_config(content)
    except CheckpointError:
        raise
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(f"{dir_or_id}: no readable configuration of SAM3 ({first_line(error)}).") from error


def require_sam3(source: str, model_type: object) -> None:
    """CheckpointError for another model."""
    if model_type not in MODEL_TYPES:
        raise CheckpointError(f"{source} holds a {model_type!r} model; expected 'sam3'.")


def read_segmenter(dir_or_id: str) -> Segmenter:
    """The float32 segmenter of a directory or a Hugging Face id, in eval mode, checked key by key."""
    try:
        with quiet_transformers():
            content = PreTrainedConfig.get_config_dict(dir_or_id)[0]
            require_sam3(dir_or_id, content.get("model_type"))
            config = as_config(content)
            loaded: Any = network_class(config).from_pretrained(
                dir_or_id,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,  # a pickle could run code
                ignore_mismatched_sizes=True,  # so that they are named below
                output_loading_info=True,
            )
    except CheckpointError:
        raise
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(f"{dir_or_id}: not a readable Sam3Model ({first_line(error)}).") from error
    net, info = loaded
    require_exact(
        dir_or_id, missing=info["missing_keys"], unexpected=info["unexpected_keys"], misshapen=info["mismatched_keys"]
    )
    return assemble(net, load_tokenizer(dir_or_id), dir_or_id)


def built(source: object, state: Mapping[str, Tensor], config: Sam3Config) -> Sam3Model:
    """A float32 Sam3Model with these weights, each of which must have its place; else CheckpointError."""
    with torch.device("meta"):  # compared before 840 million parameters are built
        expected = Sam3Model(config).state_dict()
    require_exact(
        source,
        missing=expected.keys() - state.keys(),
        unexpected=state.keys() - expected.keys(),
        misshapen=[name for name in expected.keys() & state.keys() if state[name].shape != expected[name].shape],
    )
    with quiet_transformers():
        return Sam3Model.from_pretrained(None, config=config, state_dict=dict(state), dtype=torch.float32)


def assemble(net: Sam3Model, tokenizer: Any, source: object) -> Segmenter:
    """The two as a Segmenter in eval mode; CheckpointError when the tokenizer's ids are not the text tower's."""
    config: Any = net.config.text_config
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has {len(tokenizer)} ids but the text tower {config.vocab_size}; "
            "its tokenizer files are missing or belong to another model."
        )
    end = text_rule(net.config).end
    if tokenizer.eos_token_id != end:
        raise CheckpointError(
            f"{source}: the tokenizer ends phrases with id {tokenizer.eos_token_id} but the text tower with {end}; "
            "its tokenizer files belong to another model."
        )
    return Segmenter(net, tokenizer).eval()


def require_exact(source: object, **problems: Collection[object]) -> None:
    """Raise CheckpointError that names the first few keys of the first non-empty collection in `problems`."""
    for kind, found in problems.items():
        keys = sorted(str(key) for key in found)
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(f"{source}: weights of another architecture; {kind}: {', '.join(keys[:3])}{more}.")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load reports and no progress bars inside: what they would say is raised as one line instead."""
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
