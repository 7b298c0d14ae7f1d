"""What storing a mask costs, and what it does to the mask, for our codec and others.

    python benchmarks/answer_codec.py [--scenes 16] [--made 24]

Masks are those of the embedded teacher's confident queries in scenes it never saw, and made ones at SAM3's size
(made_answers.py). Every candidate gives back a mask of logits; IoU is that of the mask above 0 with the raw one in
cells four times finer, as `sam3dist teach` measures it. A window leaves out the rows and columns that are surely
outside. Milliseconds are for one mask in one thread, from logits and back to logits; while training, codes become
logits on the device, so most of what decoding takes here is not in the way. Prints a table for each kind of masks
and, last, one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from parts import made_answers
from PIL import Image
from torch import Tensor

from sam3dist.answers import MASK_CODES, MASK_KNEE, MASK_LIMIT, imitable, mask_codes, mask_logits
from sam3dist.data.masks import encode_mask
from sam3dist.data.samples.live import scene_batch
from sam3dist.data.samples.scenes import make_scene
from sam3dist.models.segmenter import segment
from sam3dist.models.teacher import load_teacher
from sam3dist.teaching.codec import window
from sam3dist.teaching.fidelity import mask_ious

SEED = 12
"""First word of the seeds of these scenes."""


@dataclass(frozen=True)
class Candidate:
    """One way to store a mask: to bytes, and back to logits."""

    encode: Callable[[Tensor], bytes]
    decode: Callable[[bytes, tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Codes:
    """Logits as whole numbers 0..levels - 1."""

    encode: Callable[[Tensor], np.ndarray]
    decode: Callable[[np.ndarray], Tensor]


def asinh(levels: int) -> Codes:
    """The spacing of sam3dist/answers.py with another number of levels; none of them stands for 0."""
    half = levels // 2
    density = half / np.arcsinh(MASK_LIMIT / MASK_KNEE)

    def encode(logits: Tensor) -> np.ndarray:
        return ((torch.asinh(logits / MASK_KNEE) * density).floor().clamp(-half, half - 1) + half).byte().numpy()

    def decode(codes: np.ndarray) -> Tensor:
        return MASK_KNEE * torch.sinh((torch.from_numpy(codes).float() - half + 0.5) / density)

    return Codes(encode, decode)


UNIFORM = Codes(
    lambda logits: ((logits + MASK_LIMIT) * (255 / (2 * MASK_LIMIT))).round().clamp(0, 255).byte().numpy(),
    lambda codes: torch.from_numpy(codes).float() * (2 * MASK_LIMIT / 255) - MASK_LIMIT,
)
OURS = Codes(lambda logits: mask_codes(logits).numpy(), lambda codes: mask_logits(torch.from_numpy(codes)))


ZSTD, LZ4 = pa.Codec("zstd", compression_level=5), pa.Codec("lz4", compression_level=12)


def packed(packer: pa.Codec, codes: Codes, windowed: bool = True) -> Candidate:
    """Codes in a frame of zstd or LZ4, whole or only the window of those that are not 0."""

    def encode(logits: Tensor) -> bytes:
        found = codes.encode(logits)
        top, left, rows, columns = window(found) if windowed else (0, 0, *found.shape)
        head = np.array([top, left, rows, columns], np.uint16).tobytes()
        inside = np.ascontiguousarray(found[top : top + rows, left : left + columns])
        return head + bytes(packer.compress(inside.tobytes()))

    def decode(data: bytes, size: tuple[int, int]) -> Tensor:
        top, left, rows, columns = np.frombuffer(data, np.uint16, 4).tolist()
        whole = np.zeros(size, np.uint8)
        inside = np.frombuffer(packer.decompress(data[8:], rows * columns), np.uint8)
        whole[top : top + rows, left : left + columns] = inside.reshape(rows, columns)
        return codes.decode(whole)

    return Candidate(encode, decode)


def picture(codes: Codes, kind: str, **settings: object) -> Candidate:
    """Codes as a gray picture of Pillow's."""

    def encode(logits: Tensor) -> bytes:
        file = io.BytesIO()
        Image.fromarray(codes.encode(logits)).save(file, kind, **settings)
        return file.getvalue()

    def decode(data: bytes, size: tuple[int, int]) -> Tensor:
        return codes.decode(np.array(Image.open(io.BytesIO(data)).convert("L")))

    return Candidate(encode, decode)


def float16(zstd: bool) -> Candidate:
    def decode(data: bytes, size: tuple[int, int]) -> Tensor:
        raw = ZSTD.decompress(data, 2 * size[0] * size[1]).to_pybytes() if zstd else data
        return torch.from_numpy(np.frombuffer(raw, np.float16).reshape(size).astype(np.float32))

    def encode(logits: Tensor) -> bytes:
        raw = logits.half().numpy().tobytes()
        return bytes(ZSTD.compress(raw)) if zstd else raw

    return Candidate(encode, decode)


CANDIDATES = {
    "float16": float16(zstd=False),
    "float16, zstd": float16(zstd=True),
    "uniform 256, zstd": packed(ZSTD, UNIFORM, windowed=False),
    "asinh 32, zstd, window": packed(ZSTD, asinh(32)),
    "asinh 64, zstd, window": packed(ZSTD, asinh(64)),
    "asinh 128, zstd": packed(ZSTD, OURS, windowed=False),
    "asinh 128, zstd, window": packed(ZSTD, OURS),
    "asinh 128, LZ4, window": packed(LZ4, OURS),
    "asinh 256, zstd, window": packed(ZSTD, asinh(256)),
    "asinh 128, PNG": picture(OURS, "PNG"),
    "asinh 128, WebP lossless": picture(OURS, "WEBP", lossless=True),
    "uniform 256, WebP q80": picture(UNIFORM, "WEBP", quality=80),
}
CHOSEN = f"asinh {MASK_CODES}, LZ4, window"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16, help="shown to the embedded teacher")
    parser.add_argument("--made", type=int, default=24, help="scenes whose masks are made into logits of SAM3's size")
    options = parser.parse_args()
    kinds = {"embedded": taught_masks(options.scenes), "made": made_masks(options.made)}
    found = {kind: table(kind, masks) for kind, masks in kinds.items()}
    print(json.dumps({**found["made"][CHOSEN], "each": found}))


def table(kind: str, masks: Tensor) -> dict[str, dict[str, float]]:
    """What each candidate does to raw logits [M, h, w]; prints a row for each."""
    print(f"\n{len(masks)} masks, {kind}, {masks.shape[1]} x {masks.shape[2]} cells")
    print(f"{'':26} {'bytes':>8} {'mean IoU':>9} {'least IoU':>9} {'encode ms':>10} {'decode ms':>10}")
    rows = {}
    for name, candidate in CANDIDATES.items():
        row = rows[name] = measured(candidate, masks)
        print(
            f"{name:26} {row['bytes_per_mask']:8.0f} {row['mean_iou']:9.5f} {row['least_iou']:9.5f} "
            f"{row['encode_ms']:10.2f} {row['decode_ms']:10.2f}",
            flush=True,
        )
    return rows


def measured(candidate: Candidate, masks: Tensor) -> dict[str, float]:
    limited = masks.clamp(-MASK_LIMIT, MASK_LIMIT)
    stored, encode_ms = clocked(candidate.encode, limited)
    decoded, decode_ms = clocked(lambda data: candidate.decode(data, tuple(masks.shape[1:])), stored)
    ious = torch.cat([mask_ious(raw[None], back[None]) for raw, back in zip(masks, decoded, strict=True)])
    return {
        "bytes_per_mask": round(sum(map(len, stored)) / len(stored), 1),
        "mean_iou": round(float(ious.mean()), 6),
        "least_iou": round(float(ious.min()), 6),
        "encode_ms": round(encode_ms, 3),
        "decode_ms": round(decode_ms, 3),
    }


def clocked(work: Callable, items: Sequence) -> tuple[list, float]:
    """The results, and the CPU milliseconds that one took in the mean of all but the first."""
    results = [work(items[0])]
    start = time.thread_time()
    results += [work(item) for item in items[1:]]
    return results, 1000 * (time.thread_time() - start) / max(len(items) - 1, 1)


def taught_masks(scenes: int) -> Tensor:
    """Mask logits [M, h, w] of the embedded teacher's confident queries."""
    teacher = load_teacher("embedded")
    with torch.no_grad():
        said = segment(teacher, scene_batch([(SEED, number) for number in range(scenes)], None))
    return imitable(said, mask_limit=float("inf")).mask_logits


def made_masks(scenes: int) -> Tensor:
    """Mask logits [M, 288, 288] made from the masks of generated scenes."""
    random = torch.Generator().manual_seed(SEED)
    masks = [encode_mask(mask) for number in range(scenes) for mask in make_scene((SEED, number), 576).masks]
    return made_answers.made_logits(masks, random)


if __name__ == "__main__":
    main()
