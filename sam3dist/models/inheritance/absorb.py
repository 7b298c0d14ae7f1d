"""What missing layers would have added to a stream is taken over by the layer that stays before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sam3dist.models.inheritance.observe import Watch, frozen
from sam3dist.models.inheritance.plan import Plan
from sam3dist.models.inheritance.regression import Guess, Pairs
from sam3dist.models.inheritance.spaces import STACKS, stack_layers
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.types import PromptBatch

RESIDUAL = ("vision", "text", "encoder")
"""Stacks whose layers add to a stream; those of the decoder normalise it."""


def absorbed_layers(plan: Plan, teacher: Segmenter, batches: Sequence[PromptBatch]) -> dict[str, Guess]:
    """For each MLP before missing layers, what its second matrix (`fc2`, by name) is to add to its own.

    The hidden channels of the MLP are nonlinear functions of the stream, so that a linear guess from them of what
    the layers behind would have added costs nothing and does some of their work. Takes one forward pass, or none.
    """
    net = teacher.net
    pairs: dict[str, Pairs] = {}
    hidden: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {}

    def kept(mlp: str) -> Callable[[nn.Module, Tensor], None]:
        def look(module: nn.Module, values: Tensor) -> None:
            hidden[mlp] = values
            added[mlp] = torch.zeros(())

        return look

    def missing(mlp: str, last: bool) -> Callable[[Tensor, Tensor], None]:
        def look(before: Tensor, after: Tensor) -> None:
            added[mlp] = added[mlp].to(after) + after - before
            if last:
                pairs.setdefault(mlp, Pairs()).add(
                    watch.tokens(mlp, added.pop(mlp)), watch.tokens(mlp, hidden.pop(mlp))
                )

        return look

    gaps = missing_after(plan, Counter(stack for stack, _ in stack_layers(net).values()))
    if not gaps:
        return {}
    with frozen(net), torch.no_grad(), Watch(net) as watch:
        for mlp, layers in gaps.items():
            watch.before(mlp, kept(mlp))
            for layer in layers:
                watch.after(layer, missing(mlp, last=layer == layers[-1]))
        whole = any(mlp.startswith(STACKS["encoder"]) for mlp in gaps)
        for batch in batches:
            if whole:
                segment(teacher, batch)
            else:  # the towers take a part of the time
                net.vision_encoder.backbone(teacher.normalised(batch.images.to(teacher.device)))
                teacher.read(batch.prompts)
    return {mlp: found.guess(found.nothing) for mlp, found in pairs.items()}


def missing_after(plan: Plan, depths: Mapping[str, int]) -> dict[str, list[str]]:
    """The teacher's layers that are missing right behind one that stays, by the name of that one's `fc2`."""
    found = {}
    for stack in RESIDUAL:
        if stack not in plan.layers:
            continue
        kept = plan.layers[stack]
        for layer, following in zip(kept, [*kept[1:], depths[stack]], strict=True):
            if following > layer + 1:
                found[f"{STACKS[stack]}{layer}.mlp.fc2"] = [f"{STACKS[stack]}{n}" for n in range(layer + 1, following)]
    return found
