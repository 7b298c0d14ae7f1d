"""Small hand-made batches and answers for the tests of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sam3dist.boxes import to_centres
from sam3dist.data.masks import encode_mask
from sam3dist.types import LayerOutputs, PromptBatch, Rle, SegOutputs


def rectangle(top: int, left: int, bottom: int, right: int, height: int = 32, width: int = 32) -> Rle:
    """A filled rectangle as run lengths."""
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


def batch_of(
    *masks: Sequence[Rle], present: Sequence[bool] = (), exhaustive: Sequence[bool] = (), ignore: Sequence = ()
) -> PromptBatch:
    """One image and one phrase per sequence of masks; a phrase without masks is a negative unless `present` says so."""
    count = len(masks)
    return PromptBatch(
        images=torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        image_ids=(0,),
        image_sizes=((32, 32),),
        prompts=tuple(f"thing {index}" for index in range(count)),
        image_of_prompt=torch.zeros(count, dtype=torch.int64),
        present=torch.tensor([bool(row) for row in masks] if not present else list(present)),
        masks=tuple(tuple(row) for row in masks),
        ignore=tuple(ignore) or (None,) * count,
        exhaustive=torch.tensor(list(exhaustive) or [True] * count),
    )


def four_prompts() -> PromptBatch:
    """Two instances, a negative, one instance, a negative. All edges lie on cells of 2 and 4 pixels."""
    return batch_of([rectangle(0, 0, 12, 16), rectangle(16, 20, 32, 32)], [], [rectangle(8, 4, 28, 20)], [])


class Answers:
    """Free parameters that stand for a network: `outputs()` reads them, an optimizer moves them."""

    def __init__(self, prompts: int, queries: int, side: int, layers: int = 1, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)

        def free(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random).requires_grad_()

        self.masks = free(prompts, queries, side, side)
        self.queries = free(layers, prompts, queries)
        self.centres = free(layers, prompts, queries, 4)
        self.presence = free(layers, prompts)
        self.semantic = free(prompts, side, side)
        self.features = {"vision": free(1, 6, 4, 4), "encoder": free(prompts, 6, 4, 4)}

    def parameters(self) -> list[Tensor]:
        return [self.masks, self.queries, self.centres, self.presence, self.semantic, *self.features.values()]

    def outputs(self) -> SegOutputs:
        """The answers of the last layer, with those of the layers before as auxiliary."""
        centre, size = self.centres.sigmoid().chunk(2, dim=-1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
        layers = [LayerOutputs(*layer) for layer in zip(self.queries, boxes, self.presence, strict=True)]
        last = layers[-1]
        return SegOutputs(
            self.masks,
            last.query_logits,
            last.boxes,
            last.presence_logits,
            self.semantic,
            self.features,
            (*layers[:-1],),
        )

    @torch.no_grad()
    def take(self, outputs: SegOutputs) -> Answers:
        """The same answers as `outputs`, in every layer."""
        self.masks.copy_(outputs.mask_logits)
        self.queries.copy_(outputs.query_logits.expand_as(self.queries))
        self.centres.copy_(to_centres(outputs.boxes).logit(1e-6).expand_as(self.centres))
        self.presence.copy_(outputs.presence_logits.expand_as(self.presence))
        self.semantic.copy_(outputs.semantic_logits)
        for name, feature in outputs.features.items():
            self.features[name].copy_(feature)
        return self


def truthful(masks: Tensor, boxes: Tensor, counts: Sequence[int], queries: int, sure: float = 12.0) -> SegOutputs:
    """Answers that say what is so: query i of a prompt is its instance i, the rest is background.

    masks [N, h, w] bool and boxes [N, 4], ordered by prompt. Logits are plus or minus `sure`.
    """
    prompts, (height, width) = len(counts), masks.shape[-2:]
    mask_logits = torch.full((prompts, queries, height, width), -sure)
    query_logits = torch.full((prompts, queries), -sure)
    query_boxes = torch.tensor([0.45, 0.45, 0.55, 0.55]).repeat(prompts, queries, 1)
    semantic = torch.full((prompts, height, width), -sure)
    start = 0
    for prompt, count in enumerate(counts):
        own = masks[start : start + count]
        mask_logits[prompt, :count] = sure * (2.0 * own - 1)
        query_logits[prompt, :count] = sure
        query_boxes[prompt, :count] = boxes[start : start + count]
        semantic[prompt] = sure * (2.0 * own.any(0) - 1)
        start += count
    presence = torch.tensor([sure if count else -sure for count in counts])
    return SegOutputs(mask_logits, query_logits, query_boxes, presence, semantic)
