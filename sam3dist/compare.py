"""A student beside its teacher: the same pairs, the same evaluation, and pictures of where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sam3dist.data.batches import evaluation_batches
from sam3dist.data.decode import collate, decode_row
from sam3dist.data.images import load_pixels, open_image, to_rgb
from sam3dist.data.masks import decode_rle
from sam3dist.data.rejects import Reject, Rejects
from sam3dist.data.rows import Row
from sam3dist.data.shards import Shards, read_rows
from sam3dist.metrics.evaluator import Evaluator
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.models.size import model_size
from sam3dist.predictions import predictions
from sam3dist.types import PromptBatch
from sam3dist.visualize import six_panels

if TYPE_CHECKING:
    from sam3dist.config.distill import DataConfig, EvalConfig

Progress = Callable[[str, int], None]
"""Told of "student" or "teacher" and how many pairs are done."""


@dataclass(frozen=True)
class Pair:
    """A phrase asked of an image, and the IoU of either answer (1 where both truth and answer are empty)."""

    image_id: int
    phrase: str
    present: bool
    student: float = nan
    teacher: float = nan


@dataclass(frozen=True)
class Pick:
    """A pair worth a picture, and why."""

    pair: Pair
    reason: str


@dataclass(frozen=True)
class Comparison:
    student: dict[str, float]
    teacher: dict[str, float]
    pairs: tuple[Pair, ...]
    rejected: dict[str, int]
    """Rows that could not be used, by reason; the same for both models."""

    @property
    def student_over_teacher(self) -> float:
        """The student's share of the teacher's `miou_positive`; nan where the teacher's is 0."""
        whole = self.teacher["miou_positive"]
        return self.student["miou_positive"] / whole if whole else nan


def compare(
    student: Segmenter,
    teacher: Segmenter,
    shards: Shards,
    data: DataConfig,
    settings: EvalConfig,
    progress: Progress | None = None,
) -> Comparison:
    """Both models' metrics over the same pairs, each at its own resolution, and their IoU of every pair."""
    found = {}
    rejects = Rejects()
    for name, model in (("student", student), ("teacher", teacher)):
        batches = evaluation_batches(
            shards,
            data,
            model.image_size,
            max_images=settings.max_images,
            images_per_batch=settings.images_per_batch,
            prompts_per_batch=settings.prompts_per_batch,
            rejects=rejects if name == "student" else None,
        )
        done = None if progress is None else (lambda pairs, name=name: progress(name, pairs))
        found[name] = _measured(model, batches, settings.threshold, done)
    (student_metrics, asked, student_ious), (teacher_metrics, same, teacher_ious) = found["student"], found["teacher"]
    assert asked == same  # which rows make a batch does not depend on the resolution
    pairs = [Pair(*key, one, two) for key, one, two in zip(asked, student_ious, teacher_ious, strict=True)]
    return Comparison(student_metrics, teacher_metrics, tuple(pairs), dict(rejects.by_reason))


def _measured(
    model: Segmenter, batches: Iterator[PromptBatch], threshold: float, progress: Callable[[int], None] | None
) -> tuple[dict[str, float], list[tuple[int, str, bool]], list[float]]:
    evaluator = Evaluator(threshold)
    asked: list[tuple[int, str, bool]] = []
    with torch.no_grad():
        for batch in batches:
            evaluator.update(segment(model, batch.to(model.device)), batch)
            ids = [batch.image_ids[index] for index in batch.image_of_prompt.tolist()]
            asked += zip(ids, batch.prompts, batch.present.tolist(), strict=True)
            if progress is not None:
                progress(len(asked))
    return evaluator.compute(), asked, evaluator.overlaps


def choose(pairs: Sequence[Pair], count: int) -> list[Pick]:
    """`count` pairs to look at: in turn one drawn at random, the student's worst, and one that names nothing.

    Worst: the largest lead of the teacher. Of those that name nothing, the student's false alarms come first. Pairs
    that are not answered yet are only drawn at random. No pair comes twice; fewer come where there are not as many.
    """
    positives = [pair for pair in pairs if pair.present]
    drawn = [positives[index] for index in np.random.default_rng(0).permutation(len(positives))]
    answered = [pair for pair in positives if isfinite(pair.student - pair.teacher)]
    worst = sorted(answered, key=lambda pair: pair.student - pair.teacher)
    empty = sorted((pair for pair in pairs if not pair.present), key=lambda pair: pair.student == 1)
    queues = {"drawn at random": iter(drawn), "the student's worst": iter(worst), "names nothing": iter(empty)}
    turns = cycle(("drawn at random", "the student's worst", "names nothing", "drawn at random"))
    picks: list[Pick] = []
    taken: set[tuple[int, str]] = set()
    for reason in islice(turns, 4 * len(pairs)):
        if len(picks) == count:
            break
        for pair in queues[reason]:
            if (pair.image_id, pair.phrase) not in taken:
                taken.add((pair.image_id, pair.phrase))
                picks.append(Pick(pair, reason))
                break
    return picks


def some_pairs(shards: Shards, count: int) -> list[Pair]:
    """The phrases of the first `count` readable images, not yet answered; for pictures without an evaluation."""
    rows: list[Row] = []
    for group in shards.row_groups:
        if len(rows) >= count:
            break
        with suppress(Reject):  # the evaluation has counted it
            rows += read_rows(group)
    return [Pair(row.image_id, prompt.phrase, prompt.present) for row in rows[:count] for prompt in row.prompts]


def draw(
    picks: Sequence[Pick],
    student: Segmenter,
    teacher: Segmenter,
    shards: Shards,
    data: DataConfig,
    threshold: float,
    directory: Path,
) -> dict[Path, str]:
    """The files of the six-panel figures drawn into `directory`, each with its caption.

    Images that cannot be read are left out.
    """
    rows = _rows_of(shards, {pick.pair.image_id for pick in picks})
    drawn: dict[Path, str] = {}
    for number, pick in enumerate(picks, 1):
        row = rows.get(pick.pair.image_id)
        prompt = next((p for p in row.prompts if p.phrase == pick.pair.phrase), None) if row else None
        if row is None or prompt is None:
            continue
        try:
            image = np.asarray(to_rgb(load_pixels(open_image(row.image, data.max_pixels))))
            masks = {}
            for name, model in (("student", student), ("teacher", teacher)):
                batch = collate([decode_row(row, [prompt], model.image_size, data.max_pixels)])
                with torch.no_grad():
                    outputs = segment(model, batch.to(model.device))
                masks[name] = [instance.mask for instance in predictions(outputs, batch, threshold)[0]]
        except Reject:
            continue  # the evaluation has counted it
        path = six_panels(
            image,
            [decode_rle(row.rle(instance.counts)) for instance in prompt.instances],
            masks["teacher"],
            masks["student"],
            phrase=prompt.phrase,
            path=directory / f"panel_{number:02d}.png",
            crowd=None if prompt.ignore is None else decode_rle(row.rle(prompt.ignore)),
        )
        drawn[path] = _caption(pick, row.file_name)
    return drawn


def _caption(pick: Pick, file_name: str) -> str:
    pair = pick.pair
    known = isfinite(pair.student) and isfinite(pair.teacher)
    ious = f" IoU {pair.student:.2f}, the teacher's {pair.teacher:.2f}." if known and pair.present else ""
    return f"“{pair.phrase}” in {file_name}: {pick.reason}.{ious}"


def _rows_of(shards: Shards, image_ids: set[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for group in shards.row_groups:
        if len(found) == len(image_ids):
            break
        try:
            rows = read_rows(group)
        except Reject:
            continue
        found |= {row.image_id: row for row in rows if row.image_id in image_ids}
    return found


def sizes(student: Segmenter, teacher: Segmenter) -> dict[str, Any]:
    """Parameters and megabytes of both by name, and the teacher's parameters over the student's."""
    both = {name: asdict(model_size(model.net.config)) for name, model in (("student", student), ("teacher", teacher))}
    times = both["teacher"]["params_millions"] / both["student"]["params_millions"]
    return {"sizes": both, "times_smaller": times}
