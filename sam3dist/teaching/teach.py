"""One shard's answers: decode in threads, ask the teacher in batches, encode in a thread, write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sam3dist.answers import imitable
from sam3dist.data.decode import Sample, collate, decode_row
from sam3dist.data.epoch import SetAside, grouped, read
from sam3dist.data.rejects import Reject, Rejects
from sam3dist.data.rows import Row
from sam3dist.data.shards import RowGroup
from sam3dist.data.threads import ordered_map
from sam3dist.teaching.codec import encode_answers, encode_maps
from sam3dist.teaching.fidelity import Fidelity, fidelity
from sam3dist.teaching.store import COUNTS, IMAGE_FEATURES, PROMPT_FEATURES, AnswerWriter, RowAnswers, finished
from sam3dist.types import PromptBatch, SegOutputs, TeacherAnswers

if TYPE_CHECKING:
    from sam3dist.config.distill import DataConfig, EvalConfig

Ask = Callable[[PromptBatch], SegOutputs]
"""Any teacher: what it says to the prompts of a batch."""
DECODED_AHEAD, ENCODED_AHEAD = 32, 3
"""Images, and batches of answers, that may wait for the teacher and for the encoder."""


def teach_shard(
    groups: Sequence[RowGroup],
    path: Path,
    ask: Ask,
    image_size: int,
    features: Sequence[str],
    data: DataConfig,
    batch: EvalConfig,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """What the file of answers to the row groups of a shard says of itself, "recomputed": whether it was written, and
    "asking_seconds": in how many the teacher computed.

    A finished file is left as it is. image_size: side of the images the teacher is shown. batch: how many images and
    prompts it is asked at once, at most; where its memory does not suffice, fewer. Rows that cannot be read or decoded
    are answered with the reason, and counted in "rejected". progress: told how many more rows are done.
    Raises NonFiniteError where the teacher's answers are not finite, OSError where they cannot be written.
    """
    known = finished(path)
    if known is not None:
        if progress is not None:
            progress(known["rows"])
        return {**known, "recomputed": False, "asking_seconds": 0.0}
    work = _Work(ask, image_size, tuple(features), data, batch)
    writer = AnswerWriter(path)
    try:
        for rows in work.row_groups(groups):
            writer.write(rows)
            if progress is not None:
                progress(len(rows))
        return {**writer.close(work.said()), "recomputed": True, "asking_seconds": work.asking}
    except BaseException:
        writer.abandon()
        raise


@dataclass(frozen=True)
class _Answered:
    """What the teacher said of some samples. An image with many phrases comes in pieces that share their pixels."""

    samples: Sequence[Sample]
    answers: TeacherAnswers
    outputs: SegOutputs | None  # where the codec is to be measured


class _Work:
    """The teaching of one shard, with its counts."""

    def __init__(self, ask: Ask, side: int, features: tuple[str, ...], data: DataConfig, batch: EvalConfig) -> None:
        self.ask, self.side, self.features, self.data, self.batch = ask, side, features, data, batch
        self.rejects = Rejects()
        self.fidelity = Fidelity()
        self.counts = Counter[str]()
        self.asking = 0.0

    def said(self) -> dict[str, Any]:
        """The counts, as the finished file keeps them."""
        return {
            **{name: self.counts[name] for name in COUNTS},
            "rejected": dict(sorted(self.rejects.by_reason.items())),
            "fidelity": self.fidelity.as_dict(),
        }

    def row_groups(self, groups: Sequence[RowGroup]) -> Iterator[list[RowAnswers]]:
        """The answers to each row group, in order."""
        threads = self.data.decode_threads
        rows = (row for group in groups for row in read(group))
        with closing(ordered_map(self._decode, rows, threads, DECODED_AHEAD + threads)) as decoded:
            for group in groups:
                yield self._taught(list(islice(decoded, group.rows)))

    def _decode(self, row: Row | SetAside) -> Sample | SetAside:
        if isinstance(row, SetAside):
            return row
        try:
            return decode_row(row, row.prompts, self.side, self.data.max_pixels)
        except Reject as reject:
            return SetAside(row.file_name, reject, row.image_id)

    def _taught(self, results: Sequence[Sample | SetAside]) -> list[RowAnswers]:
        """The answers to the rows of one row group."""
        usable = [result for result in results if isinstance(result, Sample)]
        batches = grouped(usable, self.batch.images_per_batch, self.batch.prompts_per_batch)
        answered = (
            answered for number, samples in enumerate(batches) for answered in self._asked(samples, number == 0)
        )
        images: dict[int, dict[str, bytes]] = {}
        prompts: list[dict[str, bytes]] = []
        with closing(ordered_map(self._encoded, answered, 1, ENCODED_AHEAD)) as encoded:
            for samples, of_images, of_prompts in encoded:
                for sample, taught in zip(samples, of_images, strict=True):
                    images.setdefault(id(sample.pixels), taught)
                prompts += of_prompts
        self.counts["rows"] += len(results)
        self.counts["pairs"] += len(prompts)
        self.counts["answer_bytes"] += sum(len(taught["answer"]) for taught in prompts)
        self.counts["feature_bytes"] += sum(
            len(data) for taught in (*images.values(), *prompts) for name, data in taught.items() if name != "answer"
        )
        rest = iter(prompts)
        return [
            RowAnswers(result.image_id, None, images.get(id(result.pixels), {}), tuple(islice(rest, len(result.asked))))
            if isinstance(result, Sample)
            else self._set_aside(result)
            for result in results
        ]

    def _set_aside(self, result: SetAside) -> RowAnswers:
        self.rejects.add("row", result.name, result.reject)
        return RowAnswers(result.image_id, result.reject.reason, {}, ())

    def _asked(self, samples: Sequence[Sample], measured: bool) -> Iterator[_Answered]:
        batch = collate(samples)
        began = time.perf_counter()
        try:
            with torch.no_grad():
                outputs = self.ask(batch)
                answers = imitable(outputs, self.features)  # waits for the device
        except torch.OutOfMemoryError:
            if len(batch.prompts) == 1:
                raise
            halves = _halves(samples)
        else:
            self.asking += time.perf_counter() - began
            yield _Answered(samples, answers, outputs if measured else None)
            return
        torch.cuda.empty_cache()
        for half in halves:
            yield from self._asked(half, measured)

    def _encoded(self, answered: _Answered) -> tuple[Sequence[Sample], list[dict[str, bytes]], list[dict[str, bytes]]]:
        """The samples, and the bytes of their images and of their prompts by name."""
        answers = answered.answers
        prompts = [{"answer": data} for data in encode_answers(answers)]
        images: list[dict[str, bytes]] = [{} for _ in answered.samples]
        for name in self.features:
            owners = images if name in IMAGE_FEATURES else prompts
            assert name in (*IMAGE_FEATURES, *PROMPT_FEATURES)
            for owner, data in zip(owners, encode_maps(answers.features[name]), strict=True):
                owner[name] = data
        self.counts["masks"] += sum(answers.counts)
        if answered.outputs is not None:
            self.fidelity = self.fidelity.plus(fidelity(answered.outputs, [taught["answer"] for taught in prompts]))
        return answered.samples, images, prompts


def _halves(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The samples in two parts; a single one is parted between its phrases."""
    if len(samples) > 1:
        middle = len(samples) // 2
        return samples[:middle], samples[middle:]
    (sample,) = samples
    middle = len(sample.asked) // 2
    return [replace(sample, asked=sample.asked[:middle])], [replace(sample, asked=sample.asked[middle:])]
