"""How long a network takes for one image and one phrase."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sam3dist.models.segmenter import Segmenter

PHRASE = "a person"
WARM_UP, RUNS = 3, 10


@torch.no_grad()
def latency_ms(network: Segmenter, runs: int = RUNS) -> float:
    """Median milliseconds from the pixels to masks and scores, for one image and one phrase at a time.

    In the precision and on the device that the network is in, with as many threads as torch has, after a warm-up.
    The network is left in the mode, training or not, in which it was.
    """
    device, side = network.device, network.image_size
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    of_prompt = torch.zeros(1, dtype=torch.int64, device=device)
    training = network.training
    network.eval()
    taken = []
    for _ in range(WARM_UP + runs):
        began = _now(device)
        network(image, of_prompt, (PHRASE,))
        taken.append(1000 * (_now(device) - began))
    network.train(training)
    return median(taken[WARM_UP:])


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
