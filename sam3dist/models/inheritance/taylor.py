"""How far a teacher's answers move, to first order, when a layer, a head or a channel is taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sam3dist.models.inheritance.observe import Watch, channels_last, frozen
from sam3dist.models.inheritance.spaces import head_count, stack_layers, stream_writers, unit_readers
from sam3dist.models.inheritance.survey import Survey
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.types import PromptBatch, SegOutputs


def survey_taylor(teacher: Segmenter, batches: Sequence[PromptBatch]) -> Survey:
    """Scores by |activation * gradient| (Molchanov et al. 2019), squared; takes a forward and a backward pass.

    The loss is the distance to the teacher's own answers. Its gradient is zero, so that its Gauss-Newton term leads:
    the expected square of the derivative of the answers in a random direction (`random_direction`).
    """
    net, found = teacher.net, Survey()
    readers, stacked, writers = unit_readers(net), stack_layers(net), stream_writers(net)
    moved: dict[str, Tensor] = {}  # of this batch, by stream: [samples, channels]
    layers = dict.fromkeys(stacked, 0.0)
    samples: dict[str, int] = {}

    with frozen(net), torch.enable_grad(), Watch(net) as watch:

        def unit(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
            heads = head_count(net, readers[name])

            def look(module: nn.Module, values: Tensor) -> Tensor:
                def seen(gradient: Tensor) -> None:
                    change = watch.cleared(name, channels_last(module, gradient * values.detach()))
                    per_unit = change.unflatten(-1, (heads or change.shape[-1], -1)).sum(-1)
                    found.add(found.units, readers[name], per_unit.flatten(1, -2).sum(1).square().sum(0))

                return _told(values, seen)

            return look

        def layer(name: str) -> Callable[[Tensor, Tensor], Tensor]:
            def look(before: Tensor, after: Tensor) -> Tensor:
                def seen(gradient: Tensor) -> None:
                    change = watch.cleared(name, gradient * (after - before).detach())
                    layers[name] += float(change.flatten(1).sum(1).square().sum())

                return _told(after, seen)

            return look

        def writer(name: str, stream: str) -> Callable[[Tensor, Tensor], Tensor]:
            def look(_: Tensor, written: Tensor) -> Tensor:
                def seen(gradient: Tensor) -> None:
                    change = watch.cleared(name, gradient * written.detach())
                    # The windows of an image follow each other.
                    found.add(moved, stream, change.reshape(samples[stream], -1, change.shape[-1]).sum(1))

                return _told(written, seen)

            return look

        for name in readers:
            watch.before(name, unit(name))
        for name in stacked:
            watch.after(name, layer(name))
        for name, stream in writers.items():
            watch.after(name, writer(name, stream))
        for batch in batches:
            samples = {"vision": len(batch.images), "text": len(set(batch.prompts))}
            random_direction(segment(teacher, batch)).backward()
            for stream, change in moved.items():
                found.add(found.channels, stream, change.square().sum(0))
            moved.clear()

    for name, (stack, _) in stacked.items():
        found.layers.setdefault(stack, []).append(layers[name])
    return found


def random_direction(answers: SegOutputs) -> Tensor:
    """A scalar: the sum of the answers with random signs, each part of them scaled to the same variance.

    Its derivative squared is, on average over the signs, the sum of the squared derivatives of all answers. Masks and
    boxes count as far as their query is taken for an instance.
    """
    score = answers.query_logits.sigmoid()
    weight = score.detach().sqrt()
    parts = [
        *answers.features.values(),
        answers.mask_logits.sigmoid() * weight[..., None, None],
        answers.boxes * weight[..., None],
        answers.semantic_logits.sigmoid(),
        score,
        answers.presence_logits.sigmoid(),
    ]
    generator = torch.Generator(score.device).manual_seed(0)
    total = torch.zeros((), device=score.device)
    for part in parts:
        signs = (torch.rand(part.shape, generator=generator, device=part.device) < 0.5).to(part) * 2 - 1
        scale = (part.detach().square().mean() * part[0].numel()).clamp_min(1e-12).rsqrt()
        total = total + (part * signs).sum() * scale
    return total


def _told(values: Tensor, seen: Callable[[Tensor], None]) -> Tensor:
    """The same values, whose gradient `seen` will be told."""
    if not values.requires_grad:
        values = values.detach().requires_grad_()
    values.register_hook(seen)
    return values
