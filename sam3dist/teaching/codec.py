"""The bytes of one stored answer: a phrase's, or an image's feature map.

A phrase takes a head of 18 bytes and a zstd frame with query logits (float16), boxes (uint16), and the codes of the
semantic map and of each confident query's mask. Of a map only the window is kept whose cells are not all surely
outside. Codes keep the sign of every logit, so no mask cell changes; `fidelity.py` measures the rest
while a store is written, and benchmarks/answer_codec.py what other codecs would take.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sam3dist.answers import mask_codes
from sam3dist.data.rejects import Reject
from sam3dist.types import CodedAnswers, CodedMaps, TeacherAnswers

CODEC_VERSION = 1
_HEAD = struct.Struct("<fIHHHHH")  # presence logit, bytes unpacked, mask rows and columns, queries, confident, kept
_MAPS_HEAD = struct.Struct("<HHH")  # channels, rows, columns
_ZSTD_LEVEL = 5
_FEATURE_CODES = 127


class Window(NamedTuple):
    """The part of a map that holds all its codes but zeros."""

    top: int
    left: int
    codes: np.ndarray  # [rows, columns] uint8

    def flipped(self, width: int) -> Window:
        return Window(self.top, width - self.left - self.codes.shape[1], self.codes[:, ::-1])


@dataclass(frozen=True)
class Answer:
    """A teacher's answer to one phrase: Q queries, best first, of which K confident ones have a mask of h x w.

    Maps stay windows until `stack_answers` lays them into those of a batch: they are mostly empty, and making them
    whole here would take longer than unpacking them.
    """

    query_logits: np.ndarray  # [Q] float32
    confident: int  # queries that are not background; at least K
    presence_logit: float
    boxes: np.ndarray  # [K, 4] float32, xyxy in 0..1
    size: tuple[int, int]  # h, w
    semantic: Window
    masks: tuple[Window, ...]  # K

    def flipped(self) -> Answer:
        """The answer to the mirrored image, as far as the teacher does not mind mirrors."""
        left, top, right, bottom = self.boxes.T
        return replace(
            self,
            boxes=np.stack([1 - right, top, 1 - left, bottom], axis=1),
            semantic=self.semantic.flipped(self.size[1]),
            masks=tuple(window.flipped(self.size[1]) for window in self.masks),
        )

    @property
    def semantic_codes(self) -> np.ndarray:
        """[h, w] uint8."""
        return _maps([self.semantic], self.size)[0]

    @property
    def mask_codes(self) -> np.ndarray:
        """[K, h, w] uint8."""
        return _maps(self.masks, self.size)


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
        body = memoryview(pa.decompress(memoryview(data)[_HEAD.size :], size, "zstd"))
        logits = np.frombuffer(body, np.float16, queries)
        place = logits.nbytes
        boxes = np.frombuffer(body, np.uint16, 4 * kept, place).reshape(kept, 4)
        place += boxes.nbytes
        windows = []
        corners = np.frombuffer(body, np.uint16, 4 * (kept + 1), place).reshape(kept + 1, 4).tolist()
        place += 8 * (kept + 1)
        for top, left, rows, columns in corners:
            if top + rows > height or left + columns > width:
                raise ValueError("a window outside its map")
            codes = np.frombuffer(body, np.uint8, rows * columns, place)
            windows.append(Window(top, left, codes.reshape(rows, columns)))
            place += codes.nbytes
    except (struct.error, ValueError, OSError, pa.ArrowException) as error:
        raise Reject("corrupt answer", f"{type(error).__name__}: {error}"[:200]) from None
    return Answer(
        query_logits=logits.astype(np.float32),
        confident=confident,
        presence_logit=presence,
        boxes=boxes.astype(np.float32) * (1 / 65535),
        size=(height, width),
        semantic=windows[0],
        masks=tuple(windows[1:]),
    )


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
        body = pa.decompress(memoryview(data)[_MAPS_HEAD.size + scales.nbytes :], size, "zstd")
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
    return CodedAnswers(
        query_logits=torch.from_numpy(logits),
        background=torch.from_numpy((ranks >= confident) & (ranks < asked)),
        presence_logits=torch.tensor([answer.presence_logit for answer in answers]),
        semantic_codes=torch.from_numpy(_maps([answer.semantic for answer in answers], size)),
        counts=tuple(len(answer.boxes) for answer in answers),
        boxes=torch.from_numpy(np.concatenate([answer.boxes for answer in answers])),
        mask_codes=torch.from_numpy(_maps([window for answer in answers for window in answer.masks], size)),
        features={
            name: CodedMaps(
                torch.from_numpy(np.stack([found.codes for found in maps])),
                torch.from_numpy(np.stack([found.scales for found in maps])),
            )
            for name, maps in features.items()
        },
    )


def _maps(windows: Sequence[Window], size: tuple[int, int]) -> np.ndarray:
    """The whole maps [N, h, w] around some windows."""
    maps = np.zeros((len(windows), *size), np.uint8)
    for codes, (top, left, inside) in zip(maps, windows, strict=True):
        codes[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return maps


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
    """The bytes in a zstd frame."""
    return bytes(pa.Codec("zstd", compression_level=_ZSTD_LEVEL).compress(data))
