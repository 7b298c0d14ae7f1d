"""What `weights` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sam3dist.errors import ConfigError


@dataclass(frozen=True)
class WeightsSettings:
    """How a network is found and written."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the weights as written; they are read as float32 again, so only the files are smaller."""
    revision: str = "main"
    """Branch, tag or commit of a Hugging Face id."""
    max_shard_mb: int = 5000
    """Weights of more megabytes are split into several files."""

    def __post_init__(self) -> None:
        if self.max_shard_mb < 1:
            raise ConfigError(f"max_shard_mb={self.max_shard_mb} must be 1 or more.")
