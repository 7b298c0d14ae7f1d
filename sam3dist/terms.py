"""The elementary functions that all losses are made of. Logits in, float32 out.

M masks of h x w cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BCE_PER_FOCAL = 3 / 16
"""What focal loss charges for an undecided background cell (0.75 * 0.5 ** 2) where cross entropy charges 1."""


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of each element."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float = 2.0) -> Tensor:
    """Focal loss of each element (Lin et al. 2017): easy elements hardly count, ones weigh alpha, zeros 1 - alpha."""
    p = logits.sigmoid()
    wrong = p + target - 2 * p * target
    return (1 - alpha + (2 * alpha - 1) * target) * wrong**gamma * bce(logits, target)


def dice_loss(logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """1 - Dice of each mask [N, h, w], smoothed by one cell; cells where `known` is 0 are left out: [N]."""
    p = logits.sigmoid()
    if known is not None:
        p, target = p * known, target * known
    overlap = 2 * (p * target).sum((1, 2))
    return 1 - (overlap + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T ** 2 * KL(sigmoid(teacher / T) || sigmoid(student / T)) of each element, from logits.

    Both outcomes of each yes-or-no head count: the softmax over its single logit is always 1, and that KL always 0.
    T ** 2 keeps the gradient, (student - teacher) / 4 when T is large, from fading (Hinton et al. 2015, section 2).
    """
    s, t = student / temperature, teacher / temperature
    # KL is the same for both logits negated. With t <= 0 the difference of two large softplus never arises.
    sign = torch.where(t > 0, -1.0, 1.0)
    s, t = s * sign, t * sign
    return temperature**2 * (t.sigmoid() * (t - s) + F.softplus(s) - F.softplus(t))


def soft_dice_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - 2 p q / (p p + q q) over the cells of each mask [M, h, w], smoothed by one cell: [M].

    The squares make it least where the probabilities are equal, however soft; plain Dice wants them all sure.
    """
    p, q = student.sigmoid(), teacher.sigmoid()
    return 1 - (2 * (p * q).sum((1, 2)) + 1) / ((p * p).sum((1, 2)) + (q * q).sum((1, 2)) + 1)


def rank_means(device: torch.device, *counts: float) -> Tensor:
    """The mean of each count over all ranks, at least 1, as a vector; a plain copy in a single process."""
    total = torch.tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total /= torch.distributed.get_world_size()
    return total.clamp(min=1)
