"""Students of the tiny and the embedded teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from sam3dist.config.distill import StudentSpec
from sam3dist.data.samples.live import scene_batch
from sam3dist.models.segmenter import Segmenter
from sam3dist.models.student import blank_student
from sam3dist.models.teacher import load_teacher
from sam3dist.types import PromptBatch


@pytest.fixture(scope="session")
def embedded() -> Iterator[Segmenter]:
    """The embedded teacher; tests must leave it as it is."""
    teacher = load_teacher("embedded")
    before = [parameter.clone() for parameter in teacher.parameters()]
    yield teacher
    assert all(map(torch.equal, before, teacher.parameters()))


@pytest.fixture(scope="session")
def scenes() -> list[PromptBatch]:
    """Eight generated images with four phrases each, in two batches."""
    return [scene_batch([(7, 0, 4 * batch + k) for k in range(4)], 4) for batch in range(2)]


@pytest.fixture
def smaller() -> Callable[..., Segmenter]:
    """smaller(teacher, vision_width=64, ...): a student of this shape that has inherited nothing yet."""
    return lambda teacher, **shape: blank_student(StudentSpec(**shape), teacher, seed=0)
