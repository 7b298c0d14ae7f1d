"""In which precision a strategy computes, and the wrapper that makes it so."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sam3dist.strategies.processes import any_rank, rank_and_size

SETTINGS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

LEAST_GAIN = 1.5
"""bf16 must be this much faster than fp32: on CPUs that are about even, noise would decide, run by run."""


def resolve_precision(setting: str, device: torch.device) -> torch.dtype | None:
    """What to compute in under autocast, or None for plain float32; "auto" is torch.bfloat16 where a probe is faster.

    Rank 0 decides for all, because clocks differ. All ranks call it together.
    """
    if setting in SETTINGS:
        return SETTINGS[setting]
    rank, _ = rank_and_size()
    return torch.bfloat16 if any_rank(rank == 0 and bf16_is_faster(device), device) else None


def name_of(dtype: torch.dtype | None) -> str:
    """The setting that resolves to this type."""
    return next(name for name, known in SETTINGS.items() if known == dtype)


@cache
def bf16_is_faster(device: torch.device) -> bool:
    """Whether one transformer layer, forward and backward, is finite and at least 1.5 times faster under bf16.

    A layer and not just a matrix product: there are CPUs that multiply twice as fast in bf16 and attend three times
    slower. Takes about 0.5 s on a CPU core. The random numbers of the caller are left alone.
    """
    batch, tokens, width = (8, 1024, 1024) if device.type == "cuda" else (2, 256, 256)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(width, 8, 2 * width, dropout=0.0, batch_first=True, device=device)
        sample = torch.randn(batch, tokens, width, device=device)
    seconds = {}
    for enabled in (False, True):
        times = []
        for _ in range(4):
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                answer = layer(sample)
            answer.float().square().mean().backward()
            finite = bool(answer.isfinite().all())  # waits for the device
            times.append(time.perf_counter() - start)
        seconds[enabled] = min(times[1:])  # the first round also allocates
    return finite and seconds[False] > LEAST_GAIN * seconds[True]


class Autocast(nn.Module):
    """A module whose forward runs under autocast, wherever it is called from."""

    def __init__(self, inner: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.device_type, self.dtype = device.type, dtype

    def forward(self, *args: Any) -> dict[str, Tensor]:
        with torch.autocast(self.device_type, self.dtype):
            return self.inner(*args)


def autocast(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """The module under autocast, or as it is for None."""
    return module if dtype is None else Autocast(module, device, dtype)
