"""The nouns that travel between the layers.

Letters for shapes: B images, P prompts, Q queries, N instances, H, W pixels of the network's input,
h, w mask cells. A prompt is one phrase asked of one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

Nouns = TypeVar("Nouns")


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
    answers: CodedAnswers | TeacherAnswers | None = None
    """What the teacher said of these prompts, where it was asked before (`sam3dist teach`) or elsewhere."""

    def __post_init__(self) -> None:
        count = len(self.prompts)
        assert len(self.image_ids) == len(self.image_sizes) == self.images.shape[0]
        assert len(self.masks) == len(self.ignore) == count
        assert self.image_of_prompt.shape == self.present.shape == self.exhaustive.shape == (count,)

    def to(self, device: Any) -> PromptBatch:
        """The same batch with its tensors on `device`."""
        return _moved(self, device)


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
class TeacherAnswers:
    """What a student imitates of a teacher.

    The queries of a prompt are in the order of their scores, best first. The first `counts[p]` of them are its
    confident ones: M in all, whose boxes and masks lie packed here, prompt after prompt.
    """

    query_logits: Tensor  # [P, Q]
    background: Tensor  # [P, Q] bool: queries that the teacher does not take for an instance
    presence_logits: Tensor  # [P]
    semantic_logits: Tensor  # [P, h, w]
    counts: tuple[int, ...]  # P numbers that add up to M
    boxes: Tensor  # [M, 4] xyxy in 0..1
    mask_logits: Tensor  # [M, h, w]
    features: dict[str, Tensor] = field(default_factory=dict)
    """As those of SegOutputs."""

    def to(self, device: Any) -> TeacherAnswers:
        """The same answers with their tensors on `device`."""
        features = {name: value.to(device, non_blocking=True) for name, value in self.features.items()}
        return replace(_moved(self, device), features=features)


@dataclass(frozen=True)
class CodedAnswers:
    """TeacherAnswers on their way to the device, with a byte in place of each mask logit and feature value.

    Of each map only the window is there whose cells are not all surely outside: the maps are mostly empty, and on the
    device they are soon filled.
    """

    query_logits: Tensor  # [P, Q] float32
    background: Tensor  # [P, Q] bool
    presence_logits: Tensor  # [P] float32
    counts: tuple[int, ...]  # P numbers that add up to M
    boxes: Tensor  # [M, 4] float32, xyxy in 0..1
    map_size: tuple[int, int]  # h, w
    windows: Tensor  # [P + M, 4] int32: top, left, rows, columns; of the semantic maps, then of the masks
    codes: Tensor  # [T] uint8: the cells of all windows, one after the other, row by row
    features: dict[str, CodedMaps] = field(default_factory=dict)

    def to(self, device: Any) -> CodedAnswers:
        """The same answers with their tensors on `device`."""
        features = {name: _moved(maps, device) for name, maps in self.features.items()}
        return replace(_moved(self, device), features=features)


@dataclass(frozen=True)
class CodedMaps:
    """Feature maps whose values are codes * scales."""

    codes: Tensor  # [B or P, C, g, g] int8
    scales: Tensor  # [B or P, C] float32


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
    size: float = 0.0
    """By `objective.size`: params_millions, the megabytes of a precision, or latency_ms."""
    latency_ms: float | None = None
    """Milliseconds for an image and a phrase; None where nobody asked."""
    checkpoint: str | None = None
    before: dict[str, float] = field(default_factory=dict)
    """The metrics of the same student untrained."""
    samples_per_second: float = 0.0
    """Images trained on by all workers together, per second of training."""
    goodput: float = 0.0
    """Share of the wall time spent in the training steps that count: not those that a failure has lost. The rest waits
    for data, evaluates, saves, starts again, or was between two starts."""
    waiting_share: float = 0.0
    """Share of the wall time spent waiting for data."""
    step_seconds: float = 0.0
    """Mean time of a training step, without the wait for its data."""
    useful_seconds: float = 0.0
    """In the training steps that count."""
    wall_seconds: float = 0.0
    """Since the run first began."""
    began: float = 0.0
    """When it first began: Unix time."""


def _moved(nouns: Nouns, device: Any) -> Nouns:
    """The same data class with its tensors, and what else can be moved, on `device`."""
    moved = {
        f.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
        for f in fields(nouns)  # type: ignore[arg-type]
        for value in (getattr(nouns, f.name),)
        if isinstance(value, Tensor | CodedAnswers | TeacherAnswers)
    }
    return replace(nouns, **moved)  # type: ignore[type-var]
