"""loss = alpha * task + beta * distillation + gamma * feature.

`task.py` holds what labels teach, `imitation.py` what a teacher does, `terms.py` the functions both are made of.
Logits may arrive in half precision: everything is computed in float32. Numbers of prompts and of instances are
averaged over the ranks, so that N processes follow the same loss as one with the whole batch; hence every rank must
call `distillation_loss` equally often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam3dist.answers import imitated_features
from sam3dist.imitation import feature_loss, imitation_loss
from sam3dist.targets import make_targets
from sam3dist.task import task_loss
from sam3dist.types import LossTerms, PromptBatch, SegOutputs, TeacherAnswers

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillationConfig


def distillation_loss(
    student: SegOutputs, batch: PromptBatch, teacher: TeacherAnswers | None, config: DistillationConfig
) -> LossTerms:
    """The weighted sum and its three terms; without a teacher the last two are zero.

    A term whose weight is zero is not computed. The teacher gets no gradient. Raises NonFiniteError where the
    student's predictions match nothing or the teacher's answers are not finite.
    """
    device = student.query_logits.device
    task = distillation = feature = torch.zeros((), device=device)
    parts: dict[str, Tensor] = {}
    names = imitated_features(config)
    # Sums over cells pass 2048, where float16 stops counting, and bfloat16 does so at 256.
    with torch.autocast(device.type, enabled=False):
        if config.alpha > 0:
            height, width = student.mask_logits.shape[-2:]
            task, pieces = task_loss(student, make_targets(batch, (height, width), device), config.task)
            parts |= pieces
        if teacher is not None and config.beta > 0:
            distillation, pieces = imitation_loss(student, teacher, config.temperature, config.task)
            parts |= pieces
        if teacher is not None and names:
            feature, pieces = feature_loss(student.features, teacher.features, names)
            parts |= pieces
        total = config.alpha * task + config.beta * distillation + config.gamma * feature
    return LossTerms(task, distillation, feature, total, {name: value.detach() for name, value in parts.items()})
