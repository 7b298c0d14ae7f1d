"""Stop before a NaN reaches the weights, on every rank at once, and say which module made it.

In the healthy path nothing here waits for the device. A rank whose loss is not finite multiplies it with NaN, so its
gradients, their average over the ranks and the norm that every rank looks at before the update are NaN too. Only
then the step runs once more, under hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from sam3dist.errors import NonFiniteError
from sam3dist.types import LossTerms, PromptBatch, SegOutputs


def shield(outputs: SegOutputs) -> tuple[SegOutputs, Tensor]:
    """The outputs with zeros for what is not finite in query logits and boxes, and whether all of it was: bool [].

    The assignment of queries to instances refuses NaN with an error. Raised on one rank only, it would leave
    the others waiting in their next collective call for ever.
    """
    finite = _is_finite(outputs.query_logits, outputs.boxes)
    layers = []
    for layer in outputs.auxiliary:
        finite = finite & _is_finite(layer.query_logits, layer.boxes)
        layers.append(replace(layer, query_logits=_zeroed(layer.query_logits), boxes=_zeroed(layer.boxes)))
    shielded = replace(
        outputs,
        query_logits=_zeroed(outputs.query_logits),
        boxes=_zeroed(outputs.boxes),
        auxiliary=tuple(layers),
    )
    return shielded, finite


def poisoned_unless(finite: Tensor, loss: Tensor) -> Tensor:
    """The loss itself, or a loss with NaN in all of its gradients where it, or what it came from, is not finite."""
    return loss * torch.where(finite & loss.detach().isfinite(), 1.0, torch.nan)


def non_finite(
    step: int,
    pupil: nn.Module,
    batches: Sequence[PromptBatch],
    terms_of: Callable[[PromptBatch], tuple[LossTerms, Tensor]],
    backward: Callable[[Tensor], None],
) -> NonFiniteError:
    """The error that names the step, the loss terms and the first module whose output or gradient is not finite.

    Runs the step once more, slowly. Every rank gets the same message, that of the first rank with a finding; all ranks
    call this together.
    """
    finding = None
    for batch in batches:
        with watched(pupil) as seen:
            terms, _ = terms_of(batch)
            backward(terms.total)
        finding = finding or _finding(seen, terms)
    if dist.is_initialized() and dist.get_world_size() > 1:
        findings: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(findings, finding)
        finding = next((f"on rank {rank}, {text}" for rank, text in enumerate(findings) if text), None)
    finding = finding or "the gradient norm is not finite, which a second run of the step did not repeat"
    return NonFiniteError(
        f"Step {step}: {finding}. The weights are those of step {step - 1}; lower optim.learning_rate or "
        "optim.clip_grad_norm, or set strategy.precision=fp32."
    )


@dataclass
class Seen:
    """Names of the first modules whose output, or the gradient of whose output, was not finite."""

    output: str | None = None
    gradient: str | None = None


@contextmanager
def watched(module: nn.Module) -> Iterator[Seen]:
    """What goes wrong in the forward and backward calls inside; waits for the device at every module."""
    seen = Seen()

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(_module: nn.Module, _arguments: object, output: object) -> None:
            for tensor in tree_leaves(output):
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    continue
                # Detached: a layer that is computed again must save as many tensors as the first time.
                if seen.output is None and not tensor.detach().isfinite().all():
                    seen.output = name
                if tensor.requires_grad:
                    tensor.register_hook(look_back)

        def look_back(gradient: Tensor) -> None:
            if seen.gradient is None and not gradient.isfinite().all():
                seen.gradient = name

        return look

    # An inner module returns before the one around it, so the first to report is the innermost.
    handles: list[RemovableHandle] = [
        part.register_forward_hook(hook_of(name)) for name, part in module.named_modules() if name
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _finding(seen: Seen, terms: LossTerms) -> str | None:
    named = {name: getattr(terms, name) for name in ("task", "distillation", "feature")} | terms.parts
    bad = ", ".join(name for name, value in named.items() if not value.isfinite().all())
    if seen.output:
        return f"the output of {seen.output} is not finite" + (f", nor are the loss terms {bad}" if bad else "")
    if bad:
        return f"the loss terms {bad} are not finite, though the outputs of all modules are"
    if seen.gradient:
        return f"the gradient of the output of {seen.gradient} is not finite, though the loss is"
    return None


def _is_finite(*tensors: Tensor) -> Tensor:
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def _zeroed(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
