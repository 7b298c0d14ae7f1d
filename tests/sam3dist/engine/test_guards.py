from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sam3dist.engine.guards import non_finite, poisoned_unless, shield, watched
from sam3dist.models.segmenter import Pupil, Segmenter, segment
from sam3dist.types import LossTerms, PromptBatch

YES = torch.tensor(True)


def test_a_finite_loss_keeps_its_value_and_gradient_to_the_bit():
    x = torch.tensor(0.3, requires_grad=True)
    loss = x**3
    guarded = poisoned_unless(YES, loss)
    assert guarded.item() == loss.item()
    (gradient,) = torch.autograd.grad(guarded, x)
    assert gradient.item() == pytest.approx(3 * 0.3**2)


@pytest.mark.parametrize("finite", [True, False])
def test_a_bad_loss_poisons_every_gradient_even_those_it_would_leave_finite(finite: bool):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = x.sum() + (torch.inf if finite else 0.0)  # adding a constant does not change the gradient
    (gradient,) = torch.autograd.grad(poisoned_unless(torch.tensor(finite), loss), x)
    assert gradient.isnan().all()


def test_shielded_outputs_can_be_matched(tiny_teacher: Segmenter, make_batch: Callable[..., PromptBatch]):
    outputs = segment(tiny_teacher, make_batch(), auxiliary=True)
    same, finite = shield(outputs)
    assert finite
    assert torch.equal(same.query_logits, outputs.query_logits)
    assert torch.equal(same.auxiliary[0].boxes, outputs.auxiliary[0].boxes)

    boxes = outputs.auxiliary[0].boxes.clone()
    boxes[0, 0, 0] = torch.inf
    bad = replace(outputs, auxiliary=(replace(outputs.auxiliary[0], boxes=boxes),))
    clean, finite = shield(bad)
    assert not finite
    assert clean.auxiliary[0].boxes[0, 0, 0] == 0


class Root(nn.Module):
    """A square root, whose slope at 0 is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sqrt()


def terms(total: Tensor, **parts: Tensor) -> LossTerms:
    zero = torch.zeros(())
    return LossTerms(task=total, distillation=zero, feature=zero, total=total, parts=parts)


def test_an_infinite_gradient_is_named_by_the_output_it_belongs_to():
    network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), Root())
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)

    def forward(_: object) -> tuple[LossTerms, Tensor]:
        return terms(network(torch.ones(1, 2)).sum()), YES

    error = non_finite(7, network, [None], forward, lambda loss: loss.backward())
    # sqrt's own slope times sign(0) = 0 is NaN: the first bad gradient is that of what went into it.
    assert str(error).startswith("Step 7: the gradient of the output of 1 is not finite, though the loss is.")
    assert "weights are those of step 6" in str(error)


def test_the_batch_that_fails_is_found_among_accumulated_ones():
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    nn.init.ones_(network[0].weight)

    def forward(x: Tensor) -> tuple[LossTerms, Tensor]:
        total = network(x).sum()
        return terms(total, **{"task/dice": total.detach()}), YES

    batches = [torch.ones(1, 1), torch.full((1, 1), torch.inf)]
    error = non_finite(3, network, batches, forward, lambda loss: loss.backward())
    assert "the output of 0 is not finite, nor are the loss terms task, task/dice" in str(error)


def test_what_happened_once_and_not_again_is_said_so():
    network = nn.Sequential(nn.Linear(1, 1))
    error = non_finite(
        1, network, [torch.ones(1, 1)], lambda x: (terms(network(x).sum()), YES), lambda loss: loss.backward()
    )
    assert "a second run of the step did not repeat" in str(error)


def test_a_healthy_segmenter_raises_no_suspicion(tiny_teacher: Segmenter, make_batch: Callable[..., PromptBatch]):
    pupil = Pupil(tiny_teacher, {"vision": 16, "encoder": 16})
    with watched(pupil) as seen:
        outputs = segment(pupil, make_batch(), auxiliary=True)
        (outputs.mask_logits.mean() + outputs.boxes.mean() + outputs.features["vision"].mean()).backward()
    assert (seen.output, seen.gradient) == (None, None)
    assert not [hook for part in pupil.modules() for hook in part._forward_hooks]
