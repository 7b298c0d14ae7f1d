"""What a teacher does with a few batches: how much each layer, head and channel contributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Model

from sam3dist.models.inheritance.observe import Watch, channels_last, frozen
from sam3dist.models.inheritance.spaces import head_count, input_axis, stack_layers, stream_norms, unit_readers
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.types import PromptBatch


@dataclass
class Survey:
    """Sums over the batches; the larger a score, the more is its owner worth keeping."""

    moments: dict[str, Tensor] = field(default_factory=dict)
    """By LayerNorm of a tower: second moments [n, n] of what it reads, each token less its mean, over its deviation."""
    units: dict[str, Tensor] = field(default_factory=dict)
    """By space: the score of each head or hidden channel."""
    layers: dict[str, list[float]] = field(default_factory=dict)
    """By stack: the score of each layer."""
    channels: dict[str, Tensor] = field(default_factory=dict)
    """By stream: the score of each channel; of Taylor scores only."""

    def add(self, part: dict[str, Tensor], key: str, value: Tensor) -> None:
        part[key] = part[key] + value if key in part else value


def survey_activity(teacher: Segmenter, batches: Sequence[PromptBatch]) -> Survey:
    """Scores by what a teacher computes from these batches; takes one forward pass.

    A layer's is its influence: 1 minus the mean cosine between what it reads and what it writes (Men et al. 2024,
    "ShortGPT"). A head's or a hidden channel's is the variance of what it contributes to the next matrix product; a
    constant could go into the bias (An et al. 2024, "FLAP").
    """
    net, found = teacher.net, Survey()
    readers, stacked = unit_readers(net), stack_layers(net)
    covariances: dict[str, _Covariance] = {}
    cosines: dict[str, list[Tensor]] = {name: [] for name in stacked}

    with frozen(net), torch.no_grad(), Watch(net) as watch:

        def moment(name: str) -> Callable[[nn.Module, Tensor], None]:
            def look(module: nn.Module, stream: Tensor) -> None:
                tokens = normalised(watch.tokens(name, stream).float())
                found.add(found.moments, name, tokens.T @ tokens)

            return look

        def covariance(name: str) -> Callable[[nn.Module, Tensor], None]:
            def look(module: nn.Module, values: Tensor) -> None:
                heads = head_count(net, readers[name])
                tokens = watch.tokens(name, channels_last(module, values)).float()
                covariances.setdefault(name, _Covariance()).add(tokens.unflatten(1, (heads or tokens.shape[1], -1)))

            return look

        def influence(name: str) -> Callable[[Tensor, Tensor], None]:
            def look(before: Tensor, after: Tensor) -> None:
                read, written = (watch.tokens(name, values).float() for values in (before, after))
                cosines[name].append(torch.cosine_similarity(read, written, dim=-1))

            return look

        for name in stream_norms(net):
            watch.before(name, moment(name))
        for name in readers:
            watch.before(name, covariance(name))
        for name in stacked:
            watch.after(name, influence(name))
        for batch in batches:
            segment(teacher, batch)

    for name, seen in covariances.items():
        matrix = _read_by(net, name).unflatten(0, seen.total.shape)  # [units, channels, outputs]
        found.add(found.units, readers[name], torch.einsum("uco,ucd,udo->u", matrix, seen.matrix(), matrix))
    for name, (stack, _) in stacked.items():
        found.layers.setdefault(stack, []).append(1 - float(torch.cat(cosines[name]).mean()))
    return found


def normalised(stream: Tensor) -> Tensor:
    """Each token [..., n] less its mean, over its deviation: what a LayerNorm makes of it before gain and bias."""
    return F.layer_norm(stream, stream.shape[-1:], eps=1e-6)


class _Covariance:
    """Of the channels within each unit, from tokens [T, units, channels]."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros(())

    def add(self, tokens: Tensor) -> None:
        self.count += len(tokens)
        self.total = self.total.to(tokens) + tokens.sum(0)
        self.squares = self.squares.to(tokens) + torch.einsum("tuc,tud->ucd", tokens, tokens)

    def matrix(self) -> Tensor:
        """[units, channels, channels]."""
        mean = self.total / self.count
        return self.squares / self.count - mean[:, :, None] * mean[:, None, :]


def _read_by(net: Sam3Model, name: str) -> Tensor:
    """The weight of a linear map as [what it reads, everything else]."""
    axis = input_axis(net.get_submodule(name))
    assert axis is not None
    return net.get_parameter(f"{name}.weight").detach().float().movedim(axis, 0).flatten(1)
