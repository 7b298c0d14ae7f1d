import math
import socket
from dataclasses import replace

import pytest
import torch

from sam3dist.answers import imitable
from sam3dist.config.distill import DistillationConfig
from sam3dist.errors import NonFiniteError
from sam3dist.losses import distillation_loss
from sam3dist.targets import make_targets
from sam3dist.types import LossTerms, PromptBatch, SegOutputs, TeacherAnswers
from tests.sam3dist.cases import Answers, batch_of, four_prompts, rectangle, truthful

CONFIG = DistillationConfig(alpha=0.7, beta=0.4, gamma=0.2)


def said(teacher: SegOutputs) -> TeacherAnswers:
    return imitable(teacher, tuple(teacher.features))


def terms(batch: PromptBatch | None = None, config: DistillationConfig = CONFIG, teacher: bool = True) -> LossTerms:
    batch = batch or four_prompts()
    count = len(batch.prompts)
    student, taught = Answers(count, 6, 16, layers=2, seed=0), Answers(count, 9, 24, seed=1)
    return distillation_loss(student.outputs(), batch, said(taught.outputs()) if teacher else None, config)


def test_total_is_the_weighted_sum_of_the_three_terms():
    loss = terms()
    expected = 0.7 * loss.task + 0.4 * loss.distillation + 0.2 * loss.feature
    torch.testing.assert_close(loss.total, expected)
    assert min(loss.task, loss.distillation, loss.feature) > 0
    assert {name.split("/")[0] for name in loss.parts} == {"task", "distillation", "feature"}
    assert not any(part.requires_grad for part in loss.parts.values())


@pytest.mark.parametrize(("weight", "term"), [("alpha", "task"), ("beta", "distillation"), ("gamma", "feature")])
def test_a_term_without_weight_is_left_out(weight: str, term: str):
    loss = terms(config=CONFIG.model_copy(update={weight: 0.0}))
    assert getattr(loss, term).item() == 0
    assert not any(name.startswith(term) for name in loss.parts)


def test_without_a_teacher_labels_alone_count():
    loss = terms(teacher=False)
    assert loss.distillation.item() == loss.feature.item() == 0
    torch.testing.assert_close(loss.total, 0.7 * loss.task)


def test_the_teacher_gets_no_gradient_though_its_answers_could_carry_one():
    student, teacher = Answers(4, 6, 16, seed=0), Answers(4, 9, 24, seed=1)
    answers = teacher.outputs()
    assert answers.boxes.requires_grad
    assert answers.features["vision"].requires_grad
    distillation_loss(student.outputs(), four_prompts(), said(answers), CONFIG).total.backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in student.parameters())
    assert all(tensor.grad is None for tensor in teacher.parameters())


@pytest.mark.parametrize(
    "batch",
    [batch_of([]), batch_of([], [], []), batch_of([rectangle(1, 1, 2, 2)]), batch_of([rectangle(0, 0, 32, 32)] * 9)],
    ids=["one negative", "negatives", "one tiny instance", "more instances than queries"],
)
def test_odd_batches_give_finite_losses_and_gradients(batch: PromptBatch):
    student = Answers(len(batch.prompts), 6, 16, layers=2)
    teacher = Answers(len(batch.prompts), 9, 24, seed=1)
    loss = distillation_loss(student.outputs(), batch, said(teacher.outputs()), CONFIG)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in student.parameters())


def test_labels_and_teacher_are_learnt_at_once():
    batch = four_prompts()
    targets = make_targets(batch, (24, 24), "cpu")
    teacher = truthful(targets.masks, targets.boxes, targets.counts, queries=9, sure=5.0)
    teacher = replace(teacher, features=Answers(4, 9, 24, seed=5).features)
    student = Answers(4, 8, 16, layers=2, seed=0)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    losses = []
    for _ in range(100):
        loss = distillation_loss(student.outputs(), batch, said(teacher), DistillationConfig())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss)
    assert losses[-1].feature < 0.1 * losses[0].feature
    assert losses[-1].task < 0.1 * losses[0].task
    assert losses[-1].distillation < 0.1 * losses[0].distillation


def test_a_student_with_nan_boxes_is_named():
    student = Answers(4, 6, 16)
    with torch.no_grad():
        student.centres[0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="prompt 0 "):
        distillation_loss(student.outputs(), four_prompts(), None, CONFIG)


def test_half_precision_answers_and_autocast_give_the_float32_loss():
    student, teacher = Answers(4, 6, 16, layers=2), Answers(4, 6, 16, seed=1)

    def halved(answers: Answers):
        whole = answers.outputs()
        names = ("mask_logits", "query_logits", "presence_logits", "semantic_logits")
        return replace(whole, auxiliary=(), **{name: getattr(whole, name).bfloat16() for name in names})

    def restored(answers: Answers):
        half = halved(answers)
        names = ("mask_logits", "query_logits", "presence_logits", "semantic_logits")
        return replace(half, **{name: getattr(half, name).float() for name in names})

    expected = distillation_loss(restored(student), four_prompts(), said(restored(teacher)), CONFIG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distillation_loss(halved(student), four_prompts(), said(halved(teacher)), CONFIG)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, expected.total, rtol=1e-6, atol=0)
    found.total.backward()
    assert student.masks.grad.isfinite().all()


def _loss_of_half(rank: int, port: int, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results[rank] = _part_loss(slice(0, 1) if rank == 0 else slice(1, 4)).item()
    torch.distributed.destroy_process_group()


def _part_loss(part: slice) -> torch.Tensor:
    """The loss of some of four prompts, without features, whose variance is that of a whole batch."""

    def cut(answers: Answers):
        whole = answers.outputs()
        names = ("mask_logits", "query_logits", "boxes", "presence_logits", "semantic_logits")
        return replace(whole, auxiliary=(), **{name: getattr(whole, name).detach()[part] for name in names})

    whole = four_prompts()
    batch = batch_of(*whole.masks[part])
    config = DistillationConfig(gamma=0.0)
    return distillation_loss(cut(Answers(4, 6, 16)), batch, said(cut(Answers(4, 9, 24, seed=1))), config).total


def test_the_mean_loss_of_two_uneven_ranks_is_that_of_the_whole_batch():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_loss_of_half, args=(port, results), nprocs=2)
        halves = dict(results)
    assert (halves[0] + halves[1]) / 2 == pytest.approx(_part_loss(slice(0, 4)).item(), rel=1e-5)
