"""The bytes of one stored answer: a phrase's, or an image's feature map.

A phrase takes a head of 18 bytes and an LZ4 frame with query logits (float16), boxes (uint16), and the codes of the
semantic map and of each confident query's mask. Of a map only the window is kept whose cells are not all surely
outside. Codes keep the sign of every logit, so no mask cell changes; `fidelity.py` measures the rest
while a store is written, and benchmarks/answer_codec.py what other codecs would take.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sam3dist.answers import mask_codes
from sam3dist.data.rejects import Reject
from sam3dist.types import CodedAnswers, CodedMaps, TeacherAnswers

CODEC_VERSION = 2
_HEAD = struct.Struct("<fIHHHHH")  # presence logit, bytes unpacked, mask rows and columns, queries, confident, kept
_MAPS_HEAD = struct.Struct("<HHH")  # channels, rows, columns
_PACKER = pa.Codec("lz4", compression_level=12)
"""A quarter larger than zstd, and unpacked in a third of the time, once for every step that asks the phrase."""
_FEATURE_CODES = 127


@dataclass(frozen=True)
class Answer:
    """A teacher's answer to one phrase: Q queries, best first, of which K confident ones have a mask of h x w.

    Maps stay windows until they are on the device: they are mostly empty, and making them whole here would take longer
    than unpacking them.
    """

    query_logits: np.ndarray  # [Q] float16
    confident: int  # queries that are not background; at least K
    presence_logit: float
    boxes: np.ndarray  # [K, 4] uint16, xyxy in shares of 65535
    size: tuple[int, int]  # h, w
    windows: np.ndarray  # [1 + K, 4] uint16: top, left, rows, columns; of the semantic map, then of the masks
    codes: np.ndarray  # [T] uint8: the cells of all windows, one after the other, row by row

    def flipped(self) -> Answer:
        """The answer to the mirrored image, as far as the teacher does not mind mirrors."""
        left, top, right, bottom = self.boxes.T
        top_cell, left_cell, rows, columns = self.windows.T
        ends = np.cumsum(rows.astype(np.int64) * columns)
        parts = np.split(self.codes, ends[:-1])
        mirrored = [part.reshape(shape)[:, ::-1].ravel() for part, shape in zip(parts, self.shapes, strict=True)]
        return replace(
            self,
            boxes=np.stack([65535 - right, top, 65535 - left, bottom], axis=1),
            windows=np.stack([top_cell, self.size[1] - left_cell - columns, rows, columns], axis=1).astype(np.uint16),
            codes=np.concatenate(mirrored),
        )

    @property
    def shapes(self) -> list[list[int]]:
        """Rows and columns of each window."""
        return self.windows[:, 2:].tolist()


@dataclass(frozen=True)
class Maps:
    """One feature map of C channels: codes * scales."""

    codes: np.ndarray  # [C, g, g] int8
    scales: np.ndarray  # [C] float32

    def flipped(self) -> Maps:
        return Maps(self.codes[:, :, ::-1], self.scales)


def encode_answers(answers: TeacherAnswers) -> list[bytes]:
    """The bytes of each prompt's answer."""
    semantic = mask_codes(answers.semantic_logits).cpu().numpy()
    masks = mask_codes(answers.mask_logits).cpu().numpy()
    boxes = (answers.boxes.clamp(0, 1) * 65535).round().int().cpu().numpy().astype(np.uint16)
    logits = answers.query_logits.clamp(-60000, 60000).half().cpu().numpy()
    presence = answers.presence_logits.cpu().tolist()
    confident = (~answers.background).sum(1).tolist()
    starts = np.cumsum([0, *answers.counts])
    return [
        _encode(presence[p], logits[p], confident[p], boxes[start:end], np.stack([semantic[p], *masks[start:end]]))
        for p, (start, end) in enumerate(pairwise(starts))
    ]


def decode_answer(data: bytes) -> Answer:
    """The answer in some bytes; raises Reject where they are damaged."""
    try:
        presence, size, height, width, queries, confident, kept = _HEAD.unpack_from(data)
        body = _PACKER.decompress(memoryview(data)[_HEAD.size :], size)
        logits = np.frombuffer(body, np.float16, queries)
        place = logits.nbytes
        boxes = np.frombuffer(body, np.uint16, 4 * kept, place).reshape(kept, 4)
        place += boxes.nbytes
        windows = np.frombuffer(body, np.uint16, 4 * (kept + 1), place).reshape(kept + 1, 4)
        codes = np.frombuffer(body, np.uint8, offset=place + windows.nbytes)
        cells = 0
        for top, left, rows, columns in windows.tolist():
            cells += rows * columns
            if top + rows > height or left + columns > width:
                raise ValueError("a window outside its map")
        if cells != len(codes):
            raise ValueError(f"{len(codes)} cells in windows of {cells}")
    except (struct.error, ValueError, OSError, pa.ArrowException) as error:
        raise Reject("corrupt answer", f"{type(error).__name__}: {error}"[:200]) from None
    return Answer(logits, confident, presence, boxes, (height, width), windows, codes)


def encode_maps(features: Tensor) -> list[bytes]:
    """The bytes of each feature map [N, C, g, g], a byte for a value, in shares of its channel's greatest."""
    features = features.float()
    scales = (features.abs().amax((2, 3)) / _FEATURE_CODES).cpu()
    codes = (features.cpu() / scales.clamp(min=1e-30)[..., None, None]).round().to(torch.int8).numpy()
    return [
        _MAPS_HEAD.pack(*code.shape) + scale.numpy().tobytes() + pack(code.tobytes())
        for code, scale in zip(codes, scales, strict=True)
    ]


def decode_maps(data: bytes) -> Maps:
    """The feature map in some bytes; raises Reject where they are damaged."""
    try:
        shape = _MAPS_HEAD.unpack_from(data)
        scales = np.frombuffer(data, np.float32, shape[0], _MAPS_HEAD.size)
        size = shape[0] * shape[1] * shape[2]
        body = _PACKER.decompress(memoryview(data)[_MAPS_HEAD.size + scales.nbytes :], size)
        return Maps(np.frombuffer(body, np.int8).reshape(shape), scales)
    except (struct.error, ValueError, OSError, pa.ArrowException) as error:
        raise Reject("corrupt answer", f"{type(error).__name__}: {error}"[:200]) from None


def stack_answers(answers: Sequence[Answer], features: dict[str, list[Maps]]) -> CodedAnswers:
    """The answers to the prompts of a batch; teachers may have answered with different numbers of queries."""
    most = max(len(answer.query_logits) for answer in answers)
    logits = np.full((len(answers), most), -60000, np.float32)
    ranks = np.arange(most)
    for row, answer in zip(logits, answers, strict=True):
        row[: len(answer.query_logits)] = answer.query_logits
    confident = np.array([[answer.confident] for answer in answers])
    asked = np.array([[len(answer.query_logits)] for answer in answers])
    (size,) = {answer.size for answer in answers}
    semantic, masks = [answer.windows[:1] for answer in answers], [answer.windows[1:] for answer in answers]
    first = [math.prod(answer.shapes[0]) for answer in answers]  # cells of the semantic map
    codes = [answer.codes[:cells] for answer, cells in zip(answers, first, strict=True)]
    codes += [answer.codes[cells:] for answer, cells in zip(answers, first, strict=True)]
    return CodedAnswers(
        query_logits=torch.from_numpy(logits),
        background=torch.from_numpy((ranks >= confident) & (ranks < asked)),
        presence_logits=torch.tensor([answer.presence_logit for answer in answers]),
        counts=tuple(len(answer.boxes) for answer in answers),
        boxes=torch.from_numpy(np.concatenate([answer.boxes for answer in answers]).astype(np.float32) * (1 / 65535)),
        map_size=size,
        windows=torch.from_numpy(np.concatenate(semantic + masks).astype(np.int32)),
        codes=torch.from_numpy(np.concatenate(codes)),
        features={
            name: CodedMaps(
                torch.from_numpy(np.stack([found.codes for found in maps])),
                torch.from_numpy(np.stack([found.scales for found in maps])),
            )
            for name, maps in features.items()
        },
    )


def _encode(presence: float, logits: np.ndarray, confident: int, boxes: np.ndarray, maps: np.ndarray) -> bytes:
    windows = np.array([window(codes) for codes in maps], np.uint16)
    inside = [
        codes[top : top + rows, left : left + columns].tobytes()
        for codes, (top, left, rows, columns) in zip(maps, windows.tolist(), strict=True)
    ]
    body = b"".join([logits.tobytes(), boxes.tobytes(), windows.tobytes(), *inside])
    return _HEAD.pack(presence, len(body), *maps.shape[1:], len(logits), confident, len(boxes)) + pack(body)


def window(codes: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of the smallest window around all codes that are not 0."""
    rows, columns = np.flatnonzero(codes.any(1)), np.flatnonzero(codes.any(0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    return rows[0], columns[0], rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]


def pack(data: bytes) -> bytes:
    """The bytes in an LZ4 frame."""
    return bytes(_PACKER.compress(data))
