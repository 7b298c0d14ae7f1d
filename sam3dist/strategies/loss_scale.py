"""What losses are multiplied by so that their gradients do not vanish in fp16, whose least number is 6e-8.

The rule is that of torch.amp.GradScaler (Micikevicius et al. 2018, section 3.2): half as much after an update that had
to be left out, twice as much after 2000 without one. GradScaler itself would lower the scale for a NaN of the run, too,
and DeepSpeed 0.19.8 clips gradients before its GradScaler has unscaled them. Here the norm of all gradients, which
every strategy waits for in any case, says whether one overflowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from sam3dist.strategies.processes import any_rank

FIRST, LEAST, MOST = 2.0**16, 1.0, 2.0**24
PATIENCE = 2000
"""Updates without an overflow after which a greater scale is tried."""


class LossScale:
    """The scale of one run, the same on every rank; always 1 for those that compute in another precision."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        self.dynamic = dtype is torch.float16
        self.value = FIRST if self.dynamic else 1.0
        self.updates = 0  # since the scale changed
        self.device = device
        self.losses_finite = torch.ones((), dtype=torch.bool, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        if not self.dynamic:
            return loss
        self.watch(loss)
        return loss * self.value

    def watch(self, loss: Tensor) -> None:
        """Remember until the next update whether a loss was not finite; does not wait for the device."""
        self.losses_finite = self.losses_finite & loss.detach().isfinite()

    def after_step(self, norm: float) -> bool:
        """Whether these gradients overflowed for the scale alone, which is then lowered. All ranks call it together.

        A loss that is not finite itself, or a scale that is 1 already, is no overflow: then a smaller scale is no help.
        """
        if not self.dynamic:
            return False
        overflowed = False
        if isfinite(norm):
            self.updates += 1
        else:
            overflowed = self.value > LEAST and not any_rank(not self.losses_finite.item(), self.device)
        if overflowed or self.updates == PATIENCE:
            self.value = max(self.value / 2, LEAST) if overflowed else min(self.value * 2, MOST)
            self.updates = 0
        self.losses_finite = torch.ones_like(self.losses_finite)
        return overflowed

    def state(self) -> dict[str, Tensor]:
        """Its part of the training state: the scale, and the updates since it changed. None where it is always 1."""
        return {"loss_scale": torch.tensor([self.value, float(self.updates)])} if self.dynamic else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        if self.dynamic:
            value, updates = state["loss_scale"].tolist()
            self.value, self.updates = value, int(updates)
