"""The nouns that travel between the layers.

Letters for shapes: B images, P prompts, Q queries, N instances, H, W pixels of the network's input,
h, w mask cells. A prompt is one phrase asked of one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Rle:
    """One binary mask as uncompressed COCO run lengths.

    The runs go down the columns and start with zeros, as in pycocotools; they add up to height * width.
    """

    height: int
    width: int
    counts: np.ndarray  # [runs] uint32


@dataclass(frozen=True)
class PromptBatch:
    """B images and the P phrases asked of them; several phrases may share an image.

    Images are squashed to the network's square input, as SAM3 does; masks stay run lengths in the pixels of
    the original image until a loss or a metric needs them.
    """

    images: Tensor  # [B, 3, H, W] uint8; normalised on the device
    image_ids: tuple[int, ...]  # B
    image_sizes: tuple[tuple[int, int], ...]  # B original (height, width)
    prompts: tuple[str, ...]  # P
    image_of_prompt: Tensor  # [P] int64 into images
    present: Tensor  # [P] bool; False marks a negative: the phrase names nothing here
    masks: tuple[tuple[Rle, ...], ...]  # P times N_p instances; empty for a negative
    ignore: tuple[Rle | None, ...]  # P crowd regions: pixels that count neither for nor against
    exhaustive: Tensor  # [P] bool; False: there may be more instances than the masks show
    rejected: Mapping[str, int] = field(default_factory=dict)
    """In training, how many rows are missing because they could not be used, by reason."""

    def __post_init__(self) -> None:
        count = len(self.prompts)
        assert len(self.image_ids) == len(self.image_sizes) == self.images.shape[0]
        assert len(self.masks) == len(self.ignore) == count
        assert self.image_of_prompt.shape == self.present.shape == self.exhaustive.shape == (count,)

    def to(self, device: Any) -> PromptBatch:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for f in fields(self)
            for value in (getattr(self, f.name),)
        }
        return PromptBatch(**moved)


@dataclass(frozen=True)
class SegOutputs:
    """Raw logits of a teacher or a student. The mask side h x w may be below H x W."""

    mask_logits: Tensor  # [P, Q, h, w]
    query_logits: Tensor  # [P, Q]
    boxes: Tensor  # [P, Q, 4] xyxy in 0..1
    presence_logits: Tensor  # [P]
    semantic_logits: Tensor  # [P, h, w]
    features: dict[str, Tensor] = field(default_factory=dict)
    """By name: "vision" [B, C, g, g] (last map of the vision neck, before any text), "encoder" [P, C, g, g]."""
    auxiliary: tuple[LayerOutputs, ...] = ()
    """The decoder layers before the last, first layer first; filled while training only."""


@dataclass(frozen=True)
class LayerOutputs:
    """What one earlier decoder layer predicts, for deep supervision."""

    query_logits: Tensor  # [P, Q]
    boxes: Tensor  # [P, Q, 4] xyxy in 0..1
    presence_logits: Tensor  # [P]


@dataclass(frozen=True)
class LossTerms:
    """total = alpha * task + beta * distillation + gamma * feature; each a scalar tensor."""

    task: Tensor
    distillation: Tensor
    feature: Tensor
    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    """The unweighted pieces by name, detached, for the curves: "task/dice", "distillation/masks", ..."""


@dataclass(frozen=True)
class Report:
    """One evaluation of one model, as trainers report it and searches rank it."""

    step: int
    metrics: dict[str, float]
    params_millions: float
    megabytes: dict[str, float]  # by precision: fp32, fp16, int8, int4
    score: float
    checkpoint: str | None = None
    before: dict[str, float] = field(default_factory=dict)
    """The metrics of the same student untrained."""
    samples_per_second: float = 0.0
    """Images trained on by all workers together, per second of training."""
    goodput: float = 0.0
    """Share of the wall time spent in training steps; the rest waits for data, evaluates or saves."""
