"""From raw logits to the instances a person sees: masks at the resolution of the original image.

P prompts, Q queries, K kept queries, h, w mask cells, H, W pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3dist.types import PromptBatch, SegOutputs

CHUNK_PIXELS = 2**24
"""Mask pixels upsampled at once: 64 MB of float32."""


@dataclass(frozen=True)
class Instance:
    """One object found for a phrase."""

    mask: np.ndarray  # [H, W] bool
    box: tuple[float, float, float, float]  # xyxy in pixels of the original image
    score: float  # 0..1


def instance_scores(outputs: SegOutputs) -> Tensor:
    """sigmoid(query) * sigmoid(presence) of every query: [P, Q] float32."""
    return outputs.query_logits.float().sigmoid() * outputs.presence_logits.float().sigmoid()[:, None]


def finite_pairs(outputs: SegOutputs) -> Tensor:
    """[P] bool: False where any mask, query or presence logit of the prompt is NaN or infinite."""
    # A sum is finite only if all of its terms are, and is five times as fast as looking at each.
    logits = (outputs.mask_logits, outputs.query_logits, outputs.presence_logits[:, None])
    return torch.stack([value.flatten(1).sum(dim=1, dtype=torch.float32).isfinite() for value in logits]).all(dim=0)


def kept_queries(outputs: SegOutputs, threshold: float) -> list[Tensor]:
    """For each prompt, the indices [K] of the queries whose score reaches the threshold, best first.

    A prompt with a non-finite logit keeps none.
    """
    scores = instance_scores(outputs)
    keep = (scores >= threshold) & finite_pairs(outputs)[:, None]
    order = scores.nan_to_num(nan=-1.0).argsort(dim=1, descending=True, stable=True)
    return [best[chosen[best]] for best, chosen in zip(order, keep, strict=True)]


def upsampled(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Mask logits [K, h, w] bilinearly upsampled to [k, H, W] float32, a few at a time; above 0 is mask."""
    chunk = max(1, CHUNK_PIXELS // (size[0] * size[1]))
    for part in logits.split(chunk) if len(logits) else ():
        yield F.interpolate(part[None].float(), size=size, mode="bilinear", align_corners=False)[0]


def image_size(batch: PromptBatch, prompt: int) -> tuple[int, int]:
    """The original (height, width) of the image that a prompt is asked of."""
    return batch.image_sizes[int(batch.image_of_prompt[prompt])]


def predictions(outputs: SegOutputs, batch: PromptBatch, threshold: float) -> list[list[Instance]]:
    """For each prompt the instances whose score reaches `threshold`, best first.

    Score: sigmoid(query) * sigmoid(presence). Masks: logits bilinearly upsampled to the original image, above 0.
    A prompt with NaN or infinite logits has none.
    """
    scores = instance_scores(outputs)
    found: list[list[Instance]] = []
    for prompt, queries in enumerate(kept_queries(outputs, threshold)):
        height, width = image_size(batch, prompt)
        scale = outputs.boxes.new_tensor([width, height, width, height], dtype=torch.float32)
        boxes = (outputs.boxes[prompt, queries].float() * scale).cpu().tolist()
        masks = (
            mask
            for part in upsampled(outputs.mask_logits[prompt, queries], (height, width))
            for mask in (part > 0).cpu().numpy()
        )
        found.append(
            [
                Instance(mask, tuple(box), score)
                for mask, box, score in zip(masks, boxes, scores[prompt, queries].tolist(), strict=True)
            ]
        )
    return found


def coco_results(instances: list[Instance], image_id: int, category_id: int = 1) -> list[dict]:
    """COCO result dictionaries of one prompt: image_id, category_id, bbox (xywh pixels), segmentation, score.

    The segmentation is compressed RLE with text counts, ready for json.dump. For SA-Co evaluators `image_id` is
    the id of the (image, phrase) pair.
    """
    from pycocotools import mask as coco_mask  # training machines need not have it

    results = []
    for instance in instances:
        packed = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
        left, top, right, bottom = instance.box
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")},
                "score": instance.score,
            }
        )
    return results
