"""A network as files in the format of transformers, in any precision, compared with what was to be written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from sam3dist.errors import CheckpointError, ConfigError
from sam3dist.models.checkpoint import assemble, read_config, save_segmenter
from sam3dist.models.hub import Update
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.source import file_sha256
from sam3dist.models.teacher import DTYPES
from sam3dist.models.text import load_tokenizer

if TYPE_CHECKING:
    from sam3dist.models.settings import WeightsSettings

PARTIAL = ".partial"
"""Inside the directory that is written, until it is complete."""


def write(segmenter: Segmenter, out: Path, settings: WeightsSettings, update: Update) -> dict[str, dict[str, Any]]:
    """Each file of the network as written to `out` in the format of transformers, with its `bytes` and `sha256`.

    The segmenter's weights change to settings.precision in place. What was written is read again and compared weight
    by weight before it gets its place. ConfigError for weights beyond the range of the precision.
    """
    partial = out / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _convert(segmenter, settings.precision, update)
    save_segmenter(segmenter, partial, max_shard_mb=settings.max_shard_mb)
    require_same(segmenter.net.state_dict(), partial, update)
    read_config(str(partial))
    assemble(segmenter.net, load_tokenizer(partial), partial)  # for its check of the tokenizer
    written = {}
    for file in sorted(partial.iterdir()):
        written[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    for name in sorted(written, key=lambda name: name == "config.json"):  # last, since it makes a network of the rest
        (partial / name).replace(out / name)
    partial.rmdir()
    return written


def _convert(segmenter: Segmenter, precision: str, update: Update) -> None:
    parameters = list(segmenter.net.named_parameters())
    for done, (name, parameter) in enumerate(parameters, start=1):
        if not parameter.isfinite().all():
            raise CheckpointError(f"{name} holds NaN or infinity; this network is broken.")
        parameter.data = parameter.data.to(DTYPES.get(precision, torch.float32))
        if not parameter.isfinite().all():
            raise ConfigError(f"precision={precision}: {name} holds numbers beyond its range; use bf16 or fp32.")
        update(f"converting to {precision} (weights)", done, len(parameters))


def require_same(expected: Mapping[str, Tensor], directory: Path, update: Update) -> None:
    """CheckpointError unless the safetensors of a directory hold exactly these tensors."""
    seen = 0
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118  it is no mapping
                value = content.get_tensor(name)
                wanted = expected.get(name)
                if wanted is None or value.dtype != wanted.dtype or not torch.equal(value, wanted):
                    raise CheckpointError(f"{file}: {name} is not as it was written; is the disk sound?")
                seen += 1
                update("comparing what was written (weights)", seen, len(expected))
    if seen != len(expected):
        raise CheckpointError(f"{directory}: {len(expected) - seen} weights were not written.")
