"""Two real processes against one on the same data: same losses, same weights, same checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3dist.engine.loggers import History, read_history
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import Segmenter
from tests.sam3dist.runs import assert_same_weights, pupil_of, run
from tests.sam3dist.strategies.launch import start
from tests.sam3dist.strategies.two_ranks import BROKEN, STEPS, STOP, STRATEGIES, config_of, share, validate

pytestmark = pytest.mark.timeout(1000)  # half a minute a strategy, if two cores are free
ONE_PROCESS = config_of({"kind": "ddp"}, accumulate=4)  # two ranks accumulate two batches each


LONG = {"deepspeed-1", "deepspeed-3"}
"""ZeRO-3 takes as long as all others together, and 1 is tested with 2."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.long if name in LONG else pytest.mark.slow) for name in STRATEGIES],
)
def case(
    request: pytest.FixtureRequest, tiny_teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[dict[str, Any]], Path]:
    """A strategy's name, what its two ranks found, and its directory."""
    out = tmp_path_factory.mktemp("two_ranks")
    module = "tests.sam3dist.strategies.two_ranks"
    start(2, module, tiny_teacher_dir, out, request.param, logs=out).wait(900)
    results = [json.loads((out / f"{request.param}-{rank}.json").read_text()) for rank in range(2)]
    return request.param, results, out / request.param


@pytest.fixture(scope="module")
def alone(tiny_teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the same run in one process, without any process group."""
    out = tmp_path_factory.mktemp("alone")
    run(
        ONE_PROCESS,
        load_segmenter(tiny_teacher_dir),
        out,
        batches=share(0, 1),
        evaluate=validate(0, 1, None),
        loggers=[History(out)],
    )
    return out


def losses(directory: Path) -> list[list[float]]:
    names = ("loss/total", "loss/task", "loss/distillation", "loss/feature", "grad_norm")
    return [
        [line[name] for name in names] for line in read_history(directory / "history.jsonl") if line["kind"] == "train"
    ]


def defined(metrics: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}


def student_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_segmenter(checkpoint).state_dict()


def assert_trained_alike(checkpoint: Path, alone: Path, teacher: Segmenter) -> None:
    start = pupil_of(teacher, ONE_PROCESS).student.state_dict()
    assert_same_weights(student_of(checkpoint), student_of(alone / f"step-{STEPS:08d}"), start)


def test_shared_weights_are_those_of_the_first_rank(case: tuple[str, list[dict[str, Any]], Path]):
    _, results, _ = case
    # Two parameters and two running statistics of three ones each, and a count of one batch.
    assert results[0]["shared"] == results[1]["shared"] == [3.0, 3.0, 3.0, 3.0, 1.0]


def test_two_ranks_follow_the_losses_of_one_process(case, alone: Path):
    _, _, out = case
    found, expected = losses(out / "rank-0"), losses(alone)
    assert len(found) == len(expected) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert not (out / "rank-1").exists()  # rank 0 alone writes the history


def test_two_ranks_end_with_the_weights_of_one_process(case, alone: Path, tiny_teacher: Segmenter):
    _, _, out = case
    assert_trained_alike(out / "shared" / f"step-{STEPS:08d}", alone, tiny_teacher)


def test_every_rank_reports_the_evaluation_of_all_data(case, alone: Path):
    _, (first, second), _ = case
    expected = json.loads((alone / f"step-{STEPS:08d}" / "state.json").read_text())["report"]
    assert first["straight"]["metrics"] == second["straight"]["metrics"]
    for name in ("metrics", "before"):
        assert defined(first["straight"][name]) == pytest.approx(defined(expected[name]), rel=1e-3)
    assert expected["metrics"]["num_pairs"] == 6


def test_a_resumed_run_ends_like_one_that_never_stopped(case, alone: Path, tiny_teacher: Segmenter):
    _, results, out = case
    assert [result["written"] for result in results] == [["__0_0.distcp", "__1_0.distcp"]] * 2  # each rank its share
    assert_trained_alike(out / "resumed" / f"step-{STEPS:08d}", alone, tiny_teacher)
    straight, resumed = (defined(results[0][kind]["metrics"]) for kind in ("straight", "resumed"))
    assert resumed == pytest.approx(straight, rel=1e-3)


def test_one_process_resumes_what_two_saved(case, alone: Path, tiny_teacher: Segmenter, tmp_path: Path):
    name, _, out = case
    config = config_of(STRATEGIES[name], accumulate=4)
    batches, evaluate = share(0, 1, start=4 * STOP), validate(0, 1, None)
    run(config, tiny_teacher, tmp_path, resume=out / "stopped" / f"step-{STOP:08d}", batches=batches, evaluate=evaluate)
    assert_trained_alike(tmp_path / f"step-{STEPS:08d}", alone, tiny_teacher)


def test_a_nan_on_one_rank_stops_both_and_both_name_it(case):
    _, results, _ = case
    for result in results:
        assert result["non_finite"].startswith(f"Step 1: on rank 1, the output of {BROKEN} is not finite")


def test_an_overflow_or_a_nan_on_one_rank_is_one_for_both(case):
    _, results, _ = case
    assert [result["overflowed"] for result in results] == [[True, False, False]] * 2


def test_a_nan_on_one_rank_is_left_out_by_both(case):
    _, results, _ = case
    assert [result["left_out"] for result in results] == [[STEPS, 1]] * 2


def test_a_rank_without_instances_holds_nobody_up(case):
    _, results, _ = case
    assert [result["uneven"] for result in results] == [STEPS, STEPS]


def test_counts_are_added_up_though_each_rank_has_names_of_its_own(case):
    _, results, _ = case
    assert [result["counts"] for result in results] == [{"both": 3, "only 0": 5, "only 1": 5}] * 2


def test_weights_that_no_loss_reaches_hold_nobody_up(case):
    _, results, _ = case
    assert [result["features_alone"] for result in results] == [STEPS, STEPS]
