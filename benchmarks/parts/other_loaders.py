"""The usual ways to feed images to a training loop, for benchmarks/input_pipeline.py: each decodes in processes.

All give batches [B, 3, side, side] uint8 of the same JPEG files, decoded and resized as ours are, and no phrases.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

BATCH = 8


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def pixels(source: Any, side: int) -> Tensor:
    """An encoded image [3, side, side], as most data sets make it with Pillow."""
    image = Image.open(source).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


class Files(Dataset):
    """Image files, opened when asked for."""

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self.paths, self.side = paths, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return pixels(self.paths[index], self.side)


def dataloader(paths: Sequence[Path], side: int, workers: int) -> Iterator[Tensor]:
    """An epoch of torch's own loader over files."""
    return iter(DataLoader(Files(paths, side), BATCH, shuffle=True, num_workers=workers))


def webdataset_shards(paths: Sequence[Path], folder: Path, shards: int) -> list[str]:
    """The tar files, of which each worker reads its own."""
    import webdataset

    names = []
    for number in range(shards):
        names.append(str(folder / f"{number}.tar"))
        with webdataset.TarWriter(names[-1]) as writer:
            for path in paths[number::shards]:
                writer.write({"__key__": path.stem, "jpg": path.read_bytes()})
    return names


def webdataset_batches(tars: list[str], side: int, workers: int) -> Iterator[Tensor]:
    """An epoch of webdataset, its shuffle buffer included."""
    import webdataset

    dataset = webdataset.WebDataset(tars, shardshuffle=False).shuffle(100)
    return iter(
        DataLoader(dataset.map(lambda sample: pixels(io.BytesIO(sample["jpg"]), side)), BATCH, num_workers=workers)
    )


def litdata_chunks(paths: Sequence[Path], folder: Path) -> str:
    """The folder of chunks that litdata streams from."""
    from litdata.streaming.writer import BinaryWriter

    os.makedirs(folder)
    writer = BinaryWriter(str(folder), chunk_bytes="16MB")
    for index, path in enumerate(paths):
        writer.add_item(index, {"jpg": path.read_bytes()})
    writer.done()
    writer.merge(1)
    return str(folder)


def litdata_batches(chunks: str, side: int, workers: int) -> Iterator[Tensor]:
    """An epoch of litdata's streaming loader."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Tensor:
            return pixels(io.BytesIO(super().__getitem__(index)["jpg"]), side)

    return iter(StreamingDataLoader(Images(chunks, shuffle=True), batch_size=BATCH, num_workers=workers))
