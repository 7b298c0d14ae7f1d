from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sam3dist.evaluate import evaluate, pad_rounds


class CountingTeacher(nn.Module):
    """Passes calls on and counts them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls, self.modes = inner, 0, []

    def forward(self, *asked: object) -> dict[str, Tensor]:
        self.calls += 1
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.inner(*asked)


def test_every_rank_asks_equally_often_and_reports_the_same(tiny_teacher, make_batch):
    batches = [make_batch(images=1, prompts_per_image=2, seed=seed) for seed in range(3)]
    alone = evaluate(tiny_teacher, batches, 0.2, device="cpu")
    ranks = run_ranks(tiny_teacher, [batches[:2], batches[2:], []])
    assert [module.calls for module, _ in ranks] == [2, 2, 2]
    for _, metrics in ranks:
        assert metrics == pytest.approx(alone, abs=1e-12, nan_ok=True)
    assert alone["num_pairs"] == 6


def run_ranks(teacher: nn.Module, shares: list[list]) -> list[tuple[CountingTeacher, dict[str, float]]]:
    """Evaluates in threads whose all_reduce waits for all of them, as a process group would."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier, slots = Barrier(len(shares)), [torch.zeros(()) for _ in shares]

    def one(rank: int) -> tuple[CountingTeacher, dict[str, float]]:
        def all_reduce(tensor: Tensor) -> Tensor:
            slots[rank] = tensor
            barrier.wait(60)
            total = torch.stack(slots).sum(0)
            barrier.wait(60)
            return total

        module = CountingTeacher(teacher)
        return module, evaluate(module, shares[rank], 0.2, device="cpu", all_reduce=all_reduce)

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(one, range(len(shares))))


def test_module_is_asked_in_eval_mode_and_gets_its_modes_back(tiny_teacher, make_batch):
    module = CountingTeacher(tiny_teacher)
    module.train()
    module.inner.eval()
    evaluate(module, [make_batch(images=1)], 0.5, device="cpu")
    assert module.modes == [(False, False)]
    assert (module.training, module.inner.training) == (True, False)


def test_progress_tells_the_pairs_done(tiny_teacher, make_batch):
    done: list[int] = []
    batches = [make_batch(images=2, prompts_per_image=3), make_batch(images=1, prompts_per_image=2)]
    evaluate(tiny_teacher, batches, 0.5, device="cpu", progress=done.append)
    assert done == [6, 8]


def test_one_rank_needs_no_padding(make_batch):
    batches = [make_batch(images=1, seed=seed) for seed in range(2)]
    assert [(batch.image_ids, counts) for batch, counts in pad_rounds(batches, None)] == [((0,), True), ((0,), True)]
