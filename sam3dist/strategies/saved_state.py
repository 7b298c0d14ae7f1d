"""A training state on disk, as torch.distributed.checkpoint (DCP) wrote it, read without running what is in it.

DCP's list of contents, `.metadata`, is a pickle, and so is every value in it that is no tensor: torch 2.15 loads both
with the power to run code. Here that list may name DCP's own classes only, and all values must be tensors, which torch
reads with weights_only.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from sam3dist.errors import CheckpointError, first_line

CLASSES = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}
"""What DCP's list of contents consists of, as (module, name), beside the names of torch's dtypes."""


class SavedState:
    """The tensors in a directory that `dcp.save` filled, on any number of ranks."""

    def __init__(self, directory: Path) -> None:
        """Reads the list of contents. CheckpointError where there is none, or where it could run code."""
        self.directory = directory
        self._reader = _Reader(directory)
        try:
            contents = self._reader.read_metadata().state_dict_metadata
        except _RefusedError as error:
            raise CheckpointError(f"{directory / '.metadata'}: refused, because {first_line(error)}.") from error
        except Exception as error:  # a broken pickle fails in any way it likes
            raise self._unreadable(error) from error
        strange = next((name for name, entry in contents.items() if not isinstance(entry, TensorStorageMetadata)), None)
        if strange is not None:
            raise CheckpointError(f"{directory}: refused, because {strange} in it is no tensor and could run code.")
        self.names = frozenset(contents)
        """Paths in the tree that was saved, joined by dots."""

    def load(self, tree: dict[str, Any]) -> None:
        """Fill the tensors of this tree, DTensors among them, in place; all ranks call it together.

        CheckpointError where one of them is missing or has another shape, and where the files are damaged.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            try:
                dcp.load(tree, storage_reader=self._reader)
            except CheckpointException as error:  # of any rank, raised on all
                reason = next((failure for failure, _ in error.failures.values()), error)
                raise self._unreadable(reason) from error

    def _unreadable(self, error: BaseException) -> CheckpointError:
        return CheckpointError(f"{self.directory}: cannot be resumed ({first_line(error).rstrip('.')}).")


class _RefusedError(Exception):
    """The list of contents is no list of contents, and here is why."""


class _Reader(dcp.FileSystemReader):
    """DCP's reader, but of its own classes only; it reads the list of contents once."""

    metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self.metadata is None:
            with Path(self.path, ".metadata").open("rb") as file:
                found = _Unpickler(file).load()
            if not isinstance(found, Metadata):
                raise _RefusedError(f"it is a {type(found).__name__}, not the metadata of DCP")
            found.storage_meta = found.storage_meta or StorageMeta()
            found.storage_meta.load_id = self.load_id
            self.metadata = found
        return self.metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in CLASSES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        if not known:
            raise _RefusedError(f"it asks for {module}.{name} and could run code")
        return super().find_class(module, name)
