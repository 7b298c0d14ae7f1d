"""Teachers in processes of their own, apart from those that train: `teacher.workers` of them.

A teacher is many times as large as its student. Beside it on the same GPU it leaves the student little memory and half
of the time; on GPUs of its own it answers the next batches while the student learns from this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from cluster.environment import worker_environment
from cluster.taught import teaches
from sam3dist.answers import imitated_features
from sam3dist.errors import ResourceError
from sam3dist.types import PromptBatch, TeacherAnswers

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from sam3dist.config.distill import DistillConfig

START_S = 900.0
"""How long teachers may take to be placed and to read their weights."""
AHEAD = 2
"""Batches of a worker that are with a teacher while it trains on another."""


class _Teacher:
    """One actor: holds the teacher and answers one batch after the other."""

    def __init__(self, config: DistillConfig) -> None:
        import torch

        from sam3dist.models.teacher import in_precision, load_teacher

        device = torch.device("cuda" if config.strategy.use_gpu else "cpu")
        teacher = load_teacher(config.teacher.source, device, "fp32", config.teacher.geometry_token)
        self.teacher = in_precision(teacher, config.teacher.precision)

    def ready(self) -> int:
        """The side of the images it wants, in pixels."""
        return self.teacher.image_size

    def answer(self, batch: PromptBatch, features: tuple[str, ...]) -> TeacherAnswers:
        """What it says of the batch, on the CPU."""
        import torch

        from sam3dist.answers import imitable
        from sam3dist.models.segmenter import segment

        with torch.no_grad():
            return imitable(segment(self.teacher, batch.to(self.teacher.device)), features).to("cpu")


@dataclass(frozen=True)
class Teachers:
    """Running teachers, for whoever has a question."""

    actors: tuple[ActorHandle, ...]
    image_size: int  # pixels of a side


@contextmanager
def teachers(config: DistillConfig) -> Iterator[Teachers | None]:
    """The running teachers of `teacher.workers`, gone in the end; None where a run asks its teacher itself.

    One that dies starts again, and what it was asked is asked again. A driver has them before any worker is placed, so
    that runs that wait for teachers never hold what others' teachers wait for. ResourceError where they do not start.
    """
    if not config.teacher.workers or config.teacher.mode == "stored" or not teaches(config):
        yield None
        return
    kind = ray.remote(_Teacher).options(
        num_cpus=config.strategy.cpus_per_worker,
        num_gpus=1 if config.strategy.use_gpu else 0,
        max_restarts=-1,
        max_task_retries=-1,
        runtime_env={"env_vars": worker_environment(config.strategy)},
    )
    started = tuple(kind.remote(config) for _ in range(config.teacher.workers))
    try:
        try:
            sizes = ray.get([each.ready.remote() for each in started], timeout=START_S)
        except GetTimeoutError as error:
            raise ResourceError(
                f"teacher.workers={len(started)}: not all of them started within {START_S:g} s; other jobs may hold "
                "what they need: try again later, or ask for fewer."
            ) from error
        yield Teachers(started, sizes[0])
    finally:
        for each in started:
            ray.kill(each)


def answered(
    batches: Iterable[PromptBatch], started: Teachers, config: DistillConfig, rank: int
) -> Generator[PromptBatch]:
    """The same batches with the teachers' answers. A worker's batches go to the teachers in turn, a few ahead."""
    features = imitated_features(config.distillation)
    first = rank % len(started.actors)
    turn = cycle([*started.actors[first:], *started.actors[:first]])
    waiting: deque[tuple[PromptBatch, Any]] = deque()
    for batch in batches:
        # Without the labels, which the teacher has no use for.
        question = replace(batch, masks=((),) * len(batch.prompts), ignore=(None,) * len(batch.prompts))
        waiting.append((batch, next(turn).answer.remote(question, features)))
        if len(waiting) > AHEAD:
            yield _with_answers(*waiting.popleft())
    while waiting:
        yield _with_answers(*waiting.popleft())


def _with_answers(batch: PromptBatch, told: Any) -> PromptBatch:
    try:
        return replace(batch, answers=ray.get(told))
    except RayActorError as error:
        raise RuntimeError("a teacher is gone and does not start again") from error
