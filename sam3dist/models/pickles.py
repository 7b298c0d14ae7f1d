"""Weights in pickles, read without the power to run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from sam3dist.errors import CheckpointError, first_line


def read_pickle(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file by name, also where they lie under "model" or "state_dict" in it.

    CheckpointError for a file that holds more than tensors and plain values, and so could run code, and for one that
    cannot be read.
    """
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: refused, because it holds more than tensors and could run code.") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise CheckpointError(f"{file}: not a readable PyTorch checkpoint ({first_line(error)}).") from error
    for envelope in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(envelope), dict):
            loaded = loaded[envelope]
    if not isinstance(loaded, dict):
        return {}
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
