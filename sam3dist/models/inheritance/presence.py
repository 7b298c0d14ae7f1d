"""The last word of a student that was just cut: whether a phrase names anything, corrected by looking at the outcome.

Everything before the presence head was fitted to what the teacher read, not to what reaches it once all parts are cut
together. A presence logit that is sure and wrong costs more than all other terms of the loss; two numbers mend that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sam3dist.models.inheritance.observe import frozen
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.types import PromptBatch


@torch.no_grad()
def correct_presence(student: Segmenter, goal: Tensor, batches: Sequence[PromptBatch]) -> None:
    """Scale and shift the student's presence logits to the least-squares line through the teacher's of these batches.

    goal: the teacher's [P], on the device where the student is to be asked; it ends where it was.
    """
    home = student.device
    student.to(goal.device)
    with frozen(student.net):
        found = torch.cat([segment(student, batch).presence_logits for batch in batches])
    scale = ((found * (goal - goal.mean())).mean() / found.var(correction=0).clamp_min(1e-6)).clamp(0, 1)
    last = student.net.detr_decoder.presence_head.layer3
    assert last is not None
    last.weight.mul_(scale)
    last.bias.copy_(last.bias * scale + goal.mean() - scale * found.mean())
    student.to(home)
