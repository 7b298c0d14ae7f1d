"""Training in fp16: gradients that overflow leave a step out and lower the loss scale; NaNs are told apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.optim import SGD, AdamW

from sam3dist.errors import NonFiniteError
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import Segmenter
from sam3dist.strategies.loss_scale import FIRST, LEAST, MOST, PATIENCE, LossScale
from sam3dist.strategies.protocol import Strategy, make_strategy
from tests.sam3dist.runs import pupil_of, run, simple_loss
from tests.sam3dist.strategies.test_strategies import config_of, state_of, trainable

CPU = torch.device("cpu")


def test_the_scale_follows_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    overflows = torch.rand(3 * PATIENCE, generator=generator) < 0.002
    overflows[PATIENCE : 2 * PATIENCE + 10] = False
    weight = nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=FIRST)
    ours = LossScale(torch.float16, CPU)
    assert 0 < overflows.sum() < 16
    seen = set()
    for overflow in overflows.tolist():
        theirs.scale(torch.ones(1))
        weight.grad = torch.full((1,), torch.inf if overflow else 1.0)
        theirs.step(optimizer)
        theirs.update()
        assert ours.after_step(torch.inf if overflow else 1.0) == overflow
        assert ours.value == theirs.get_scale()
        seen.add(ours.value)
    assert len(seen) > 3


def test_the_scale_stays_within_its_bounds():
    scale = LossScale(torch.float16, CPU)
    while scale.value > LEAST:
        assert scale.after_step(torch.inf)
    assert not scale.after_step(torch.inf)  # no smaller scale would help
    assert scale.value == 1
    for _ in range(30 * PATIENCE):
        scale.after_step(1.0)
    assert scale.value == MOST


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_other_precisions_have_no_scale(dtype: torch.dtype | None):
    scale = LossScale(dtype, CPU)
    loss = torch.ones(())
    assert scale.scaled(loss) is loss
    assert not scale.after_step(torch.inf)
    assert scale.state() == {}


def begin(kind: dict[str, Any], teacher: Segmenter, max_norm: float = 1.0) -> tuple[Strategy, nn.Module]:
    config = config_of(kind, "fp16", clip_grad_norm=max_norm)
    strategy = make_strategy(config)
    module, _ = strategy.setup(pupil_of(teacher, config), lambda module: SGD(trainable(module), lr=0.5))
    module.train()
    return strategy, module


def test_gradients_are_clipped_without_the_scale(kind: dict[str, Any], tiny_teacher: Segmenter):
    max_norm = 0.25
    strategy, module = begin(kind, tiny_teacher, max_norm)
    before = state_of(strategy)
    twin = pupil_of(tiny_teacher, config_of(kind)).train()
    gradients = torch.autograd.grad(simple_loss(twin), trainable(twin), allow_unused=True)
    norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]).item()
    for _ in range(10):  # the first scale may be too large
        strategy.backward(simple_loss(module))
        found = strategy.step(max_norm)
        if not strategy.overflowed:
            break
    assert found == pytest.approx(norm, rel=0.02)
    assert found > max_norm
    # Of all that moved, the projections are not in the student.
    moved = sum(float((value - before[name]).square().sum()) for name, value in state_of(strategy).items()) ** 0.5
    assert 0.5 * 0.5 * max_norm < moved < 0.5 * max_norm * 1.001


def test_an_overflow_leaves_the_step_out_and_lowers_the_scale(kind: dict[str, Any], tiny_teacher: Segmenter):
    strategy, module = begin(kind, tiny_teacher)
    before = state_of(strategy)
    strategy.backward(simple_loss(module) * 1e6)  # finite, but times 65536 no number of fp16
    assert not torch.tensor(strategy.step(1.0)).isfinite()
    assert strategy.overflowed
    assert strategy.scale.value == FIRST / 2
    assert all(torch.equal(value, before[name]) for name, value in state_of(strategy).items())
    for _ in range(10):
        strategy.backward(simple_loss(module))
        norm = strategy.step(1.0)
        if not strategy.overflowed:
            break
    assert torch.tensor(norm).isfinite()
    assert not all(torch.equal(value, before[name]) for name, value in state_of(strategy).items())


def test_a_nan_is_no_overflow(kind: dict[str, Any], tiny_teacher: Segmenter):
    strategy, module = begin(kind, tiny_teacher)
    strategy.backward(simple_loss(module) * torch.nan)
    assert not torch.tensor(strategy.step(1.0)).isfinite()
    assert not strategy.overflowed
    assert strategy.scale.value == FIRST
    strategy.scale.value = LEAST
    strategy.backward(simple_loss(module) * 1e12)  # no scale is left to lower
    assert not torch.tensor(strategy.step(1.0)).isfinite()
    assert not strategy.overflowed


def test_the_scale_is_saved_and_restored(kind: dict[str, Any], tiny_teacher: Segmenter, tmp_path: Path):
    strategy, _ = begin(kind, tiny_teacher)
    strategy.scale.value, strategy.scale.updates = 1024.0, 7
    dcp.save(strategy.training_state(), checkpoint_id=tmp_path / "fp16", no_dist=True)
    other, _ = begin(kind, tiny_teacher)
    other.load(tmp_path / "fp16")
    assert (other.scale.value, other.scale.updates) == (1024.0, 7)


def test_runs_in_other_precisions_resume_each_other(tiny_teacher: Segmenter, tmp_path: Path):
    states = {}
    for precision in ("fp32", "fp16"):
        strategy = make_strategy(config_of({"kind": "ddp"}, precision))
        pupil = pupil_of(tiny_teacher, config_of({"kind": "ddp"}))
        strategy.setup(pupil, lambda module: AdamW(trainable(module)))
        dcp.save(strategy.training_state(), checkpoint_id=tmp_path / precision, no_dist=True)
        states[precision] = strategy
    states["fp16"].load(tmp_path / "fp32")
    assert states["fp16"].scale.value == FIRST
    states["fp32"].load(tmp_path / "fp16")
    assert states["fp32"].scale.value == 1


def test_a_run_goes_on_after_overflows_and_counts_their_steps(tiny_teacher: Segmenter, tmp_path: Path):
    config = config_of({"kind": "ddp"}, "fp16", steps=14)
    strategy = make_strategy(config)
    strategy.scale.value = 2.0**18
    report, _ = run(config, tiny_teacher, tmp_path, strategy=strategy)
    assert report.step == 14
    assert strategy.scale.value < 2.0**17  # more than one overflow
    weights = load_segmenter(tmp_path / "step-00000014").state_dict()
    start = pupil_of(tiny_teacher, config).student.state_dict()
    assert all(value.isfinite().all() for value in weights.values())
    assert any(not torch.equal(value, start[name]) for name, value in weights.items())


def test_a_nan_of_the_forward_pass_stops_a_run_at_once(tiny_teacher: Segmenter, tmp_path: Path):
    config = config_of({"kind": "ddp"}, "fp16", max_skipped_steps=0)
    pupil = pupil_of(tiny_teacher, config)
    pupil.student.net.detr_encoder.layers[0].register_forward_hook(lambda _module, _inputs, output: output * torch.nan)
    with pytest.raises(NonFiniteError, match=r"Step 1: the output of student.net.detr_encoder.layers.0 is not finite"):
        run(config, tiny_teacher, tmp_path, pupil=pupil, evaluate=lambda _: {"miou_all": 0.0})
