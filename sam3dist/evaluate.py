"""One evaluation for students and teachers, on one rank or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from sam3dist.metrics.evaluator import Evaluator
from sam3dist.models.segmenter import segment
from sam3dist.types import PromptBatch

AllReduce = Callable[[Tensor], Tensor]
"""Takes a float64 tensor on the evaluation's device and returns the sum of every rank's."""


def evaluate(
    module: nn.Module,
    batches: Iterable[PromptBatch],
    threshold: float,
    *,
    device: torch.device | str,
    all_reduce: AllReduce | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """The metrics of `module` over the batches of all ranks, the same on every rank; see Evaluator for what they mean.

    module: a Segmenter or Pupil, bare or wrapped by a strategy; it is asked in eval mode without gradients and
    gets its modes back. threshold: the least sigmoid(query) * sigmoid(presence) of a kept query. progress: called
    after each batch with the number of pairs this rank has done. With `all_reduce` every rank must call this
    together; they may hold different numbers of batches, even none.
    """
    evaluator = Evaluator(threshold)
    modes = [(part, part.training) for part in module.modules()]
    on_device = _on_device(all_reduce, device)
    try:
        module.eval()
        with torch.no_grad():
            for batch, counts in pad_rounds(batches, on_device):
                outputs = segment(module, batch.to(device))
                if counts:
                    evaluator.update(outputs, batch)
                    if progress is not None:
                        progress(int(evaluator.sums["num_pairs"]))
    finally:
        for part, mode in modes:
            part.training = mode
    if on_device is not None:
        evaluator.reduce(on_device)
    return evaluator.compute()


def pad_rounds(batches: Iterable[PromptBatch], all_reduce: AllReduce | None) -> Iterator[tuple[PromptBatch, bool]]:
    """The batches of this rank, each with True, then blank ones with False until the busiest rank is done.

    Parameters sharded over ranks are gathered in every forward call, so a rank that called less often would leave the
    others waiting for ever. The ranks agree on each round by one reduced number, so nobody has to know beforehand
    how many batches there are.
    """
    if all_reduce is None:
        yield from ((batch, True) for batch in batches)
        return
    source = iter(batches)
    while True:
        batch = next(source, None)
        if not all_reduce(torch.tensor(float(batch is not None), dtype=torch.float64)).item():
            return
        yield (_blank_batch(), False) if batch is None else (batch, True)


def _blank_batch() -> PromptBatch:
    """The cheapest question: a black image, which networks resize, and a word."""
    return PromptBatch(
        images=torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        image_ids=(0,),
        image_sizes=((32, 32),),
        prompts=("object",),
        image_of_prompt=torch.zeros(1, dtype=torch.int64),
        present=torch.zeros(1, dtype=torch.bool),
        masks=((),),
        ignore=(None,),
        exhaustive=torch.ones(1, dtype=torch.bool),
    )


def _on_device(all_reduce: AllReduce | None, device: torch.device | str) -> AllReduce | None:
    """`all_reduce` for tensors of the CPU: NCCL reduces those of its own device only."""
    if all_reduce is None:
        return None
    return lambda tensor: all_reduce(tensor.to(device)).cpu()
