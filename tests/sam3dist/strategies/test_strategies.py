"""What every strategy promises, in one process; test_two_ranks.py has the promises about several."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from sam3dist.answers import imitable
from sam3dist.config.distill import DistillConfig
from sam3dist.engine.optim import make_optimizer
from sam3dist.errors import CheckpointError, ResourceError
from sam3dist.losses import distillation_loss
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.strategies.processes import any_rank, own_device, sum_over_ranks
from sam3dist.strategies.protocol import Strategy, make_strategy
from tests.conftest import random_batch
from tests.sam3dist.runs import assert_same_weights, pupil_of, run, settings, simple_loss
from tests.sam3dist.strategies.two_ranks import without_instances

CPU = torch.device("cpu")
BATCH = random_batch(1, 2)


def config_of(kind: dict[str, Any], precision: str = "fp32", **optim: Any) -> DistillConfig:
    return settings(strategy={**kind, "precision": precision}, optim=optim)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def state_of(strategy: Strategy) -> dict[str, Tensor]:
    state = strategy.student_state()
    assert state is not None
    return state


def test_a_step_moves_the_weights_by_the_clipped_gradient(kind: dict[str, Any], tiny_teacher: Segmenter):
    max_norm = 0.01
    config = config_of(kind, clip_grad_norm=max_norm)
    pupil = pupil_of(tiny_teacher, config)
    twin = copy.deepcopy(pupil).train()
    weights = trainable(twin)
    gradients = torch.autograd.grad(simple_loss(twin), weights)
    norm = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
    assert norm > max_norm
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= 0.5 * gradient * max_norm / norm

    strategy = make_strategy(config)
    module, _ = strategy.setup(pupil, lambda module: SGD(trainable(module), lr=0.5))
    module.train()
    strategy.backward(simple_loss(module))
    assert strategy.step(max_norm) == pytest.approx(norm, rel=1e-4)
    found = state_of(strategy)
    assert set(found) == set(twin.student.state_dict())
    for name, value in twin.student.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7, msg=name)


def test_small_gradients_are_not_scaled_up(kind: dict[str, Any], tiny_teacher: Segmenter):
    config = config_of(kind, clip_grad_norm=1e6)
    pupil = pupil_of(tiny_teacher, config)
    twin = copy.deepcopy(pupil).train()
    name = "net.detr_decoder.query_embed.weight"
    weight = twin.student.get_parameter(name)
    (gradient,) = torch.autograd.grad(simple_loss(twin), [weight])
    strategy = make_strategy(config)
    module, _ = strategy.setup(pupil, lambda module: SGD(trainable(module), lr=0.5))
    strategy.backward(simple_loss(module))
    strategy.step(1e6)
    torch.testing.assert_close(state_of(strategy)[name], weight - 0.5 * gradient)


def test_a_gradient_that_is_not_finite_changes_nothing(kind: dict[str, Any], tiny_teacher: Segmenter):
    config = config_of(kind)
    pupil = pupil_of(tiny_teacher, config)
    strategy = make_strategy(config)
    module, _ = strategy.setup(pupil, lambda module: AdamW(trainable(module), lr=0.1))
    before = {name: value.clone() for name, value in state_of(strategy).items()}
    strategy.backward(simple_loss(module) * torch.nan)
    assert not torch.tensor(strategy.step(1.0)).isfinite()
    for name, value in state_of(strategy).items():
        assert torch.equal(value, before[name]), name
    # And it leaves nothing behind: the next step is a good one.
    strategy.backward(simple_loss(module))
    assert torch.tensor(strategy.step(1.0)).isfinite()
    assert not torch.equal(
        state_of(strategy)["net.detr_decoder.query_embed.weight"], before["net.detr_decoder.query_embed.weight"]
    )


def test_what_is_saved_goes_on_as_if_it_had_not_stopped(kind: dict[str, Any], tiny_teacher: Segmenter, tmp_path: Path):
    config = config_of(kind, accumulate=2)

    def begin() -> tuple[Strategy, Callable[[int], None]]:
        strategy = make_strategy(config)
        module, _ = strategy.setup(pupil_of(tiny_teacher, config), lambda module: make_optimizer(module, config.optim))
        module.train()

        def step(seed: int) -> None:
            for offset in (0, 100):
                strategy.backward(simple_loss(module, random_batch(1, 2, seed=seed + offset)))
            strategy.step(config.optim.clip_grad_norm)

        return strategy, step

    first, step = begin()
    step(0)
    step(1)
    dcp.save(first.training_state(), checkpoint_id=tmp_path / "training", no_dist=True)
    step(2)

    second, step = begin()
    second.load(tmp_path / "training")
    step(2)
    expected, found = state_of(first), state_of(second)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def test_recomputed_layers_are_trained_to_the_same_weights(
    kind: dict[str, Any], tiny_teacher: Segmenter, tmp_path: Path
):
    trained: dict[bool, dict[str, Tensor]] = {}
    calls: dict[bool, int] = {}
    start = pupil_of(tiny_teacher, config_of(kind)).student.state_dict()
    for recompute in (False, True):
        config = config_of(kind, steps=2, gradient_checkpointing=recompute)
        pupil = pupil_of(tiny_teacher, config)
        counted: list[int] = []
        pupil.student.net.vision_encoder.backbone.layers[0].attention.register_forward_hook(
            lambda module, *_, counted=counted: counted.append(1) if module.training else None
        )
        run(config, tiny_teacher, tmp_path / str(recompute), pupil=pupil)
        trained[recompute] = load_segmenter(tmp_path / str(recompute) / "step-00000002").state_dict()
        calls[recompute] = len(counted)
    assert calls == {False: 2, True: 4}
    assert_same_weights(trained[True], trained[False], start)


def test_nothing_to_load_is_a_checkpoint_error(kind: dict[str, Any], tiny_teacher: Segmenter, tmp_path: Path):
    config = config_of(kind)
    strategy = make_strategy(config)
    strategy.setup(pupil_of(tiny_teacher, config), lambda module: AdamW(trainable(module)))
    with pytest.raises(CheckpointError, match="nowhere"):
        strategy.load(tmp_path / "nowhere")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_computes_nearly_the_same_and_keeps_float32_weights(
    precision: str, dtype: torch.dtype, kind: dict[str, Any], tiny_teacher: Segmenter
):
    losses: dict[str, list[float]] = {}
    for setting in ("fp32", precision):
        config = config_of(kind, setting)
        strategy = make_strategy(config)
        assert strategy.precision == setting
        module, _ = strategy.setup(pupil_of(tiny_teacher, config), lambda module: AdamW(trainable(module), lr=1e-3))
        losses[setting] = []
        for _ in range(3):
            outputs = segment(module, BATCH)
            assert outputs.mask_logits.dtype == (torch.float32 if setting == "fp32" else dtype)
            loss = simple_loss(module)
            strategy.backward(loss)
            strategy.step(config.optim.clip_grad_norm)
            losses[setting].append(loss.item())
        assert {value.dtype for value in state_of(strategy).values() if value.is_floating_point()} == {torch.float32}
    assert losses[precision] != losses["fp32"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)


@pytest.mark.parametrize("weights", [{"beta": 0.0, "gamma": 0.0}, {"alpha": 0.0, "gamma": 0.0}, {}])
@pytest.mark.parametrize("empty", [False, True], ids=["with instances", "without"])
def test_every_trainable_weight_is_reached(weights: dict[str, float], empty: bool, tiny_teacher: Segmenter):
    # DDP waits for each of them, so a batch that leaves one out would stop the run.
    config = settings(distillation=weights)
    pupil = pupil_of(tiny_teacher, config).train()
    batch = without_instances(random_batch(1, 1)) if empty else random_batch(1, 2)
    with torch.no_grad():
        taught = imitable(segment(tiny_teacher, batch), ("vision", "encoder"))
    outputs = segment(pupil, batch, auxiliary=config.distillation.alpha > 0)
    distillation_loss(outputs, batch, taught, config.distillation).total.backward()
    assert not [name for name, p in pupil.named_parameters() if p.requires_grad and p.grad is None]


def test_one_process_speaks_for_itself():
    assert any_rank(True, CPU)
    assert not any_rank(False, CPU)
    tensor = torch.tensor([1.0, 2.0])
    assert torch.equal(sum_over_ranks(tensor), tensor)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ResourceError, match=r"strategy.use_gpu=true .* set strategy.use_gpu=false"):
        own_device(settings(strategy={"use_gpu": True}).strategy)


def test_auto_precision_is_settled_once_and_leaves_random_numbers_alone(tiny_teacher: Segmenter):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = {make_strategy(config_of({"kind": "ddp"}, "auto")).precision for _ in range(3)}
    assert torch.equal(torch.rand(1), expected)
    assert len(found) == 1
    assert found <= {"fp32", "bf16"}
