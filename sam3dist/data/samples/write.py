"""Writes generated scenes as a data set like any other: photographs, SA-Co style pairs, and shards made from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sam3dist.data.masks import encode_mask
from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.samples.phrases import scene_questions
from sam3dist.data.samples.scenes import SPLITS, make_scene

ROWS_PER_SHARD = 64
"""Few, so that several actors share the teaching of a small set."""


def write_scenes(
    out_dir: Path, images: int, seed: int = 0, side: int = 256, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, Path]:
    """The pairs file and the image folder of `images` scenes, in the SA-Co layout that `prepare` reads."""
    folder = out_dir / "images"
    folder.mkdir(parents=True, exist_ok=True)
    pairs: list[dict] = []
    annotations: list[dict] = []
    for number in range(images):
        scene = make_scene((SPLITS["shards"], seed, number), side)
        name = f"scene_{number:06d}.jpg"
        Image.fromarray(scene.image).save(folder / name, quality=95)
        for question in scene_questions(scene.things, np.random.default_rng((SPLITS["shards"], seed, number, 1))):
            pair = len(pairs) + 1
            pairs.append(
                {
                    "id": pair,
                    "file_name": name,
                    "width": side,
                    "height": side,
                    "text_input": question.phrase,
                    "is_instance_exhaustive": 1,
                }
            )
            for instance in question.instances:
                annotations.append(_annotation(len(annotations) + 1, pair, scene.masks[instance]))
        if progress is not None:
            progress(number + 1, images)
    path = out_dir / "pairs.json"
    content = {
        "info": {"description": "generated scenes"},
        "images": pairs,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    path.write_text(json.dumps(content))
    return path, folder


def scene_shards(
    out_dir: Path, images: int, seed: int = 0, side: int = 256, progress: Callable[[int, int], None] | None = None
) -> Path:
    """A directory of shards with `images` scenes; made once, then found again."""
    shards = out_dir / f"scenes-{seed}-{images}-{side}"
    if not (shards / "manifest.json").exists():
        source = out_dir / f"source-{seed}-{images}-{side}"
        pairs, folder = write_scenes(source, images, seed, side, progress)
        prepare(pairs, folder, shards, PrepareSettings(rows_per_shard=ROWS_PER_SHARD))
    return shards


def _annotation(number: int, pair: int, mask: np.ndarray) -> dict:
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    width, height = int(columns.max()) + 1 - left, int(rows.max()) + 1 - top
    counts = [int(run) for run in encode_mask(mask).counts]
    side = mask.shape[0]
    return {
        "id": number,
        "image_id": pair,
        "bbox": [left / side, top / side, width / side, height / side],
        "area": int(mask.sum()) / mask.size,
        "segmentation": {"size": list(mask.shape), "counts": counts},
        "category_id": 1,
        "iscrowd": 0,
    }
