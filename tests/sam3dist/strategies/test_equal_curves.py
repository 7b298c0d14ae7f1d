"""Every strategy, on one, two and three processes, against a bare PyTorch loop: same curves, and any resumes any."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor

from sam3dist.answers import imitable
from sam3dist.engine.loggers import read_history
from sam3dist.engine.optim import learning_rate, make_optimizer, set_learning_rate
from sam3dist.losses import distillation_loss
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import Pupil, segment
from tests.sam3dist.runs import assert_same_weights, pupil_of
from tests.sam3dist.strategies.any_ranks import BATCHES, PAIRS, RESUMED, SAVED, STEPS, config_of, share
from tests.sam3dist.strategies.launch import start
from tests.sam3dist.strategies.two_ranks import STRATEGIES

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]  # a minute and a half on two cores, if they are free
TOLERANCES = {"total": 1e-4, "task": 1e-4, "distillation": 2e-3, "feature": 1e-4}
"""Share of a loss by which it may differ at any step. Distillation is a ten thousandth of the total here."""


@dataclass(frozen=True)
class Bare:
    """What a plain loop in one process gave: losses by name and step, and the student's weights at some steps."""

    losses: dict[str, list[float]]
    weights: dict[int, dict[str, Tensor]]


@pytest.fixture(scope="module")
def ranks(tiny_teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of any_ranks.py, run by two processes and then, from what they saved, by one and by three."""
    out = tmp_path_factory.mktemp("any_ranks")
    module = "tests.sam3dist.strategies.any_ranks"
    start(2, module, tiny_teacher_dir, out, logs=out).wait(700)
    others = [start(number, module, tiny_teacher_dir, out, logs=out) for number in PAIRS]
    for group in others:
        group.wait(700)
    return out


@pytest.fixture(scope="module")
def bare(tiny_teacher_dir: Path) -> Bare:
    """A loop without any strategy, engine or group."""
    config = config_of({"kind": "ddp"}, ranks=1)
    teacher = load_segmenter(tiny_teacher_dir).eval().requires_grad_(False)
    pupil = pupil_of(teacher, config).train()
    optimizer = make_optimizer(pupil, config.optim)
    losses: dict[str, list[float]] = {name: [] for name in TOLERANCES}
    weights = {0: copy_of(pupil)}
    batches = share(0, 1)
    for step in range(1, STEPS + 1):
        set_learning_rate(optimizer, learning_rate(step, config.optim))
        terms = []
        for batch in islice(batches, BATCHES):
            with torch.no_grad():
                taught = imitable(segment(teacher, batch), config.distillation.features)
            terms.append(distillation_loss(segment(pupil, batch, auxiliary=True), batch, taught, config.distillation))
            (terms[-1].total / BATCHES).backward()
        torch.nn.utils.clip_grad_norm_(pupil.parameters(), config.optim.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        for name, values in losses.items():
            values.append(sum(float(getattr(term, name)) for term in terms) / BATCHES)
        if step in (SAVED, RESUMED):
            weights[step] = copy_of(pupil)
    return Bare(losses, weights)


def copy_of(pupil: Pupil) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pupil.student.state_dict().items()}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("name", STRATEGIES)
def test_losses_over_twenty_steps_are_those_of_a_bare_loop(name: str, number: int, ranks: Path, bare: Bare):
    points = [point for point in read_history(ranks / f"{number}-{name}" / "history.jsonl") if point["kind"] == "train"]
    assert [point["step"] for point in points] == list(range(1, STEPS + 1))
    greatest = {}
    for loss in TOLERANCES:
        found = [point[f"loss/{loss}"] for point in points]
        greatest[loss] = max(abs(a - b) / abs(b) for a, b in zip(found, bare.losses[loss], strict=True))
    print(f"{number} x {name}: " + "  ".join(f"{loss} {value:.1e}" for loss, value in greatest.items()))
    assert bare.losses["total"][-1] < 0.9 * bare.losses["total"][0]  # they learn
    assert {loss: value for loss, value in greatest.items() if value >= TOLERANCES[loss]} == {}


@pytest.mark.parametrize(
    ("number", "saved", "name"), [(n, *pair) for n, pairs in PAIRS.items() for pair in pairs.items()]
)
def test_a_run_goes_on_with_another_strategy_and_number_of_workers(
    number: int, saved: str, name: str, ranks: Path, bare: Bare
):
    found = load_segmenter(ranks / f"{number}-{saved}-{name}" / f"step-{RESUMED:08d}").state_dict()
    expected, before = bare.weights[RESUMED], bare.weights[SAVED]
    assert_same_weights(found, expected, start=bare.weights[0])
    # And far closer in most: one more in AdamW's count of steps makes this 5e-4, and without its moments it is 0.7.
    shares = [float((found[name] - value).norm() / (value - before[name]).norm()) for name, value in expected.items()]
    print(f"{saved} x 2 -> {name} x {number}: half of the tensors differ by under {median(shares):.1e} of their moves")
    assert median(shares) < 1e-4
