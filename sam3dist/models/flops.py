"""How much a network of some configuration computes, before anything is built."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam3Config

from sam3dist.models.network import build_network, grid_of
from sam3dist.models.size import PARTS


def gigaflops(config: Sam3Config) -> dict[str, float]:
    """Billions of operations of one forward pass by part: `vision` of an image, `text` and `head` of one phrase.

    Of the matrix products and convolutions, where a multiplication counts one operation and an addition another. The
    phrase is as long as can be. Run on the meta device: nothing is computed, half a second to one.
    """
    with torch.device("meta"):
        net: Any = build_network(config).eval().requires_grad_(False)
    side, grid, text = config.image_size, grid_of(config), net.config.text_config

    def coordinates(
        _decoder: object, _height: Tensor, _width: Tensor, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        return (torch.empty(grid, dtype=dtype, device=device),) * 2

    # The decoder reads the grid from a tensor, and those of the meta device have no values.
    net.detr_decoder._get_coords = MethodType(coordinates, net.detr_decoder)
    ids = torch.empty(1, text.max_position_embeddings, dtype=torch.int64, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False, depth=1) as counter:
        net(pixel_values=torch.empty(1, 3, side, side, device="meta"), input_ids=ids)
    counts = {name: sum(kinds.values()) / 1e9 for name, kinds in counter.get_flop_counts().items()}
    own = type(net).__name__
    found = dict.fromkeys(("vision", "text", "head"), 0.0)
    for module, part in PARTS.items():
        found[part] += counts.get(f"{own}.{module}", 0.0)
    found["head"] = counts["Global"] - found["vision"] - found["text"]
    return found
