"""A builder of tiny COCO data sets on disk, good and bad."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam3dist.data.prepare import PrepareSettings, prepare
from sam3dist.data.rows import Row
from sam3dist.data.shards import open_shards, read_rows

SIZE = (24, 32)  # height, width


class CocoFolder:
    """One annotation file and its images; every method adds a record and returns its id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images_dir = root / "images"
        self.images_dir.mkdir(parents=True)
        self.out = root / "shards"
        self.head: dict[str, Any] = {
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "traffic_light"}]
        }
        self.images: list[Any] = []
        self.annotations: list[Any] = []

    def save(self, name: str, picture: Image.Image | bytes | None = None, **options: Any) -> None:
        path = self.images_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            (picture or picture_of(len(self.images))).save(path, **options)

    def image(self, picture: Image.Image | bytes | None = None, *, save: bool = True, **record: Any) -> int:
        number = len(self.images) + 1
        full = {"id": number, "file_name": f"{number:04d}.png", "height": SIZE[0], "width": SIZE[1]} | record
        if save:
            self.save(full["file_name"], picture)
        self.images.append(full)
        return int(full["id"])

    def instance(self, image: int, category: int = 1, **record: Any) -> int:
        number = len(self.annotations) + 1
        square = [[4, 4, 12, 4, 12, 12, 4, 12]]
        full = {"id": number, "image_id": image, "category_id": category, "segmentation": square, "iscrowd": 0}
        self.annotations.append(full | {"bbox": [4, 4, 8, 8], "area": 64} | record)
        return number

    def pair(self, phrase: Any, file_name: str, **record: Any) -> int:
        """An SA-Co style entry: one phrase asked of one file."""
        number = len(self.images) + 1
        if not (self.images_dir / file_name).exists():
            self.save(file_name)
        full = {"id": number, "file_name": file_name, "height": SIZE[0], "width": SIZE[1], "text_input": phrase}
        self.images.append(full | record)
        return number

    def write(self) -> Path:
        path = self.root / "instances.json"
        path.write_text(json.dumps({"images": self.images, "annotations": self.annotations, **self.head}))
        return path

    def prepare(self, **settings: Any) -> dict[str, Any]:
        """The manifest, with no limit on rejects unless the test gives one."""
        return prepare(
            self.write(), self.images_dir, self.out, PrepareSettings(**({"max_rejected_share": 1.0} | settings))
        )

    def rows(self) -> list[Row]:
        return [row for group in open_shards(self.out).row_groups for row in read_rows(group)]

    def rejected(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "rejected.jsonl").read_text().splitlines()]


def picture_of(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A small picture with smooth colours, so that JPEG keeps it nearly."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of a file of this picture."""
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def only_reason(coco: CocoFolder, reason: str, **settings: Any) -> None:
    """Prepares beside one good image with one good instance; just this reason is counted, just once."""
    coco.instance(coco.image())
    manifest = coco.prepare(**settings)
    assert manifest["rejected"] == {reason: 1}
    assert (manifest["rows"], manifest["instances"]) == (1, 1)
    assert [line["reason"] for line in coco.rejected()] == [reason]
