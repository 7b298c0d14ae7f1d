"""One image and some phrases -> the instances a segmenter finds, as a picture and as COCO JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from sam3dist.data.images import load_pixels, open_image, to_rgb
from sam3dist.data.rejects import Reject
from sam3dist.errors import DataError
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.overlay import overlay
from sam3dist.predictions import Instance, coco_results, predictions
from sam3dist.types import PromptBatch


def read_picture(path: Path | str, max_pixels: int = 50_000_000) -> Image.Image:
    """The image of a file, upright and in RGB. DataError names the file and what is wrong with it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of an image file.") from error
    try:
        image = load_pixels(open_image(data, max_pixels))
    except Reject as reject:
        limit = "raise data.max_pixels" if reject.reason == "too many pixels" else "give a JPEG, PNG, WebP or TIFF"
        raise DataError(f"{path}: {reject.reason} ({reject.detail}); {limit}.") from None
    return to_rgb(ImageOps.exif_transpose(image))


def predict(segmenter: Segmenter, image: Image.Image, phrases: Sequence[str], threshold: float) -> list[list[Instance]]:
    """For each phrase the instances found, best first; masks and boxes in the pixels of the image.

    threshold: the least sigmoid(query) * sigmoid(presence) of an instance, 0..1.
    """
    batch = _asked(image, phrases, segmenter.image_size)
    with torch.no_grad():
        outputs = segment(segmenter, batch.to(segmenter.device))
    return predictions(outputs, batch, threshold)


def draw(image: Image.Image, phrases: Sequence[str], found: Sequence[Sequence[Instance]]) -> Image.Image:
    """The image with every instance in a colour of its own, outlined, with phrase and score; best scores on top."""
    labelled = [
        (instance.score, instance.mask, f"{phrase} {instance.score:.2f}")
        for phrase, instances in zip(phrases, found, strict=True)
        for instance in instances
    ]
    labelled.sort(key=lambda item: -item[0])
    return overlay(image, [mask for _, mask, _ in labelled], [label for _, _, label in labelled])


def coco_document(
    file_name: str, size: tuple[int, int], phrases: Sequence[str], found: Sequence[Sequence[Instance]]
) -> dict[str, Any]:
    """A COCO document that pycocotools can load: the image, a category per phrase, an annotation per instance.

    size: (height, width) in pixels. Annotations add `phrase` and `score`; boxes are xywh in pixels and masks
    compressed RLE.
    """
    annotations: list[dict[str, Any]] = []
    for category, (phrase, instances) in enumerate(zip(phrases, found, strict=True), 1):
        for instance, result in zip(instances, coco_results(list(instances), 1, category), strict=True):
            extra = {"id": len(annotations) + 1, "phrase": phrase, "area": int(instance.mask.sum()), "iscrowd": 0}
            annotations.append({**extra, **result})
    return {
        "images": [{"id": 1, "file_name": file_name, "height": size[0], "width": size[1]}],
        "categories": [{"id": number, "name": phrase} for number, phrase in enumerate(phrases, 1)],
        "annotations": annotations,
    }


def _asked(image: Image.Image, phrases: Sequence[str], side: int) -> PromptBatch:
    """The image squashed to the network's square, as in training, and its phrases; what is there is not known."""
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    count = len(phrases)
    return PromptBatch(
        images=torch.from_numpy(np.ascontiguousarray(pixels))[None],
        image_ids=(1,),
        image_sizes=((image.height, image.width),),
        prompts=tuple(phrases),
        image_of_prompt=torch.zeros(count, dtype=torch.int64),
        present=torch.zeros(count, dtype=torch.bool),
        masks=((),) * count,
        ignore=(None,) * count,
        exhaustive=torch.zeros(count, dtype=torch.bool),
    )
