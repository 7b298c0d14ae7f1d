"""Models as the command line names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam3dist.models.segmenter import Segmenter


def load(source: str, precision: str = "fp32", geometry_token: bool | None = None) -> Segmenter:
    """The model on the GPU if there is one, ready to answer. CheckpointError says what is wrong with it."""
    import torch

    from sam3dist.models.teacher import load_teacher

    return load_teacher(source, "cuda" if torch.cuda.is_available() else "cpu", precision, geometry_token)
