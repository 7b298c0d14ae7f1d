"""The numbers of the steps between two log lines, averaged without waiting for the device at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from sam3dist.strategies.processes import sum_over_ranks
from sam3dist.types import LossTerms


class Curves:
    """Sums of loss terms on the device. Their names depend on the configuration alone, so ranks can add them up."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, terms: LossTerms) -> None:
        named = {
            "loss/total": terms.total,
            "loss/task": terms.task,
            "loss/distillation": terms.distillation,
            "loss/feature": terms.feature,
            **terms.parts,
        }
        for name, value in named.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.count += 1

    def take(self, world_size: int) -> dict[str, float]:
        """Means over the batches of all ranks since the last call, which all ranks make together."""
        names = sorted(self.sums)
        means = sum_over_ranks(torch.stack([self.sums[name].float() for name in names])) / (self.count * world_size)
        self.sums, self.count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))
