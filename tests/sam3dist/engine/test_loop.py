import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path

import pytest
import torch
import yaml

from sam3dist.data.segments import Segment
from sam3dist.engine.checkpoint import json_safe, read_state
from sam3dist.engine.clock import TIMES
from sam3dist.engine.loggers import History, read_history
from sam3dist.engine.loop import step_seed
from sam3dist.errors import NonFiniteError
from sam3dist.models.checkpoint import load_segmenter
from sam3dist.models.segmenter import Pupil, Segmenter
from sam3dist.types import PromptBatch
from tests.conftest import random_batch
from tests.sam3dist.runs import Published, assert_same_weights, newest_checkpoint, pupil_of, run, settings, stream


def after(calls: int) -> object:
    """A question that is answered with yes from the given call on."""
    asked = count(1)
    return lambda: next(asked) >= calls


def joined(first: PromptBatch, second: PromptBatch) -> PromptBatch:
    return PromptBatch(
        images=torch.cat([first.images, second.images]),
        image_ids=first.image_ids + second.image_ids,
        image_sizes=first.image_sizes + second.image_sizes,
        prompts=first.prompts + second.prompts,
        image_of_prompt=torch.cat([first.image_of_prompt, second.image_of_prompt + len(first.image_ids)]),
        present=torch.cat([first.present, second.present]),
        masks=first.masks + second.masks,
        ignore=first.ignore + second.ignore,
        exhaustive=torch.cat([first.exhaustive, second.exhaustive]),
    )


def test_training_lowers_the_loss_and_tells_of_every_evaluation_and_checkpoint(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(
        optim={"steps": 12, "learning_rate": 5e-3},
        eval={"every_steps": 4},
        checkpoint={"every_steps": 6},
        run={"log_every_steps": 3},
    )
    told = Published()
    same = random_batch(2, 3, seed=5)
    report, _ = run(
        config,
        tiny_teacher,
        tmp_path / "checkpoints",
        publish=told,
        batches=iter(lambda: same, None),
        loggers=[History(tmp_path)],
        epoch_images=4,
    )

    history = read_history(tmp_path / "history.jsonl")
    losses = [line["loss/total"] for line in history if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert [(line["step"], line["kind"]) for line in history] == [
        (0, "eval"),
        (3, "train"),
        (4, "eval"),
        (6, "train"),
        (8, "eval"),
        (9, "train"),
        (12, "train"),
        (12, "eval"),
    ]
    assert history[-2]["epoch"] == 6  # 12 steps of 2 images, 4 images in an epoch
    assert {"task/dice", "distillation/queries", "feature/vision", "learning_rate", "grad_norm"} <= set(history[-2])

    # An evaluation without a checkpoint of its own comes with the last one's, unless it is the best so far.
    assert [r.step for r in told] == [4, 8, 12]
    assert [Path(r.checkpoint).name for r in told if r.checkpoint][-1] == "step-00000012"
    known = json.loads((tmp_path / "checkpoints" / "manifest.json").read_text())
    assert {entry["step"] for entry in known["checkpoints"]} >= {6, 12}
    scores = {entry["name"]: entry["score"] for entry in known["checkpoints"] if entry["score"] is not None}
    assert scores[known["best"]] == max(scores.values()) == max(r.score for r in told)
    assert report.step == 12
    assert json_safe(report.before) == {name: history[0][name] for name in report.before}
    assert json_safe(report.metrics) == {name: history[-1][name] for name in report.metrics}
    assert 0 < report.goodput < 1
    assert report.goodput == report.useful_seconds / report.wall_seconds
    assert report.step_seconds == report.useful_seconds / 12
    assert {"goodput", "waiting_share", "step_seconds", "data_wait_seconds"} <= set(history[-2])
    assert report.samples_per_second > 0
    assert report.checkpoint == str(newest_checkpoint(tmp_path / "checkpoints"))


def test_a_checkpoint_is_a_student_anyone_can_load(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(optim={"steps": 2})
    _, pupil = run(config, tiny_teacher, tmp_path)
    checkpoint = tmp_path / "step-00000002"
    loaded = load_segmenter(checkpoint)
    assert torch.equal(
        torch.nn.utils.parameters_to_vector(loaded.parameters()),
        torch.nn.utils.parameters_to_vector(pupil.student.parameters()),
    )
    state = json.loads((checkpoint / "state.json").read_text())
    assert {"step": 2, "batches": 2, "images": 4, "seed": 0, "world_size": 1}.items() <= state.items()
    assert state["best"]["step"] in (0, 2)
    assert state["versions"]["torch"] == torch.__version__
    assert yaml.safe_load((checkpoint / "config.yaml").read_text()) == config.model_dump(mode="json")


def test_a_resumed_run_ends_with_the_same_bits(tiny_teacher: Segmenter, tmp_path: Path):
    def with_dropout() -> Pupil:
        pupil = pupil_of(tiny_teacher, config)
        pupil.student.net.detr_encoder.layers[0].dropout.p = 0.1
        return pupil

    config = settings(optim={"accumulate": 2}, eval={"every_steps": 2})
    straight, expected = run(
        config, tiny_teacher, tmp_path / "a", pupil=with_dropout(), loggers=[History(tmp_path / "a")]
    )

    log = [History(tmp_path / "b")]
    begins, once = Segment("", 1, 1, 1, 2), {"pupil": with_dropout(), "loggers": log, "told_to_stop": after(3)}
    stopped, _ = run(config, tiny_teacher, tmp_path / "b", segments=(begins,), **once)
    assert stopped.step == 2  # its last evaluation
    checkpoint = newest_checkpoint(tmp_path / "b")
    assert checkpoint is not None
    state = read_state(checkpoint)
    assert (state.step, state.batches, state.segments) == (3, 6, (replace(begins, batches=6),))
    other = replace(begins, images_per_batch=1)
    times = dict.fromkeys(("samples_per_second", *TIMES, "checkpoint"))
    resumed, pupil = run(
        config,
        tiny_teacher,
        tmp_path / "b",
        pupil=with_dropout(),
        loggers=log,
        resume=checkpoint,
        batches=stream(state.batches),
        segments=(*state.segments, other),
    )
    ended = newest_checkpoint(tmp_path / "b")
    assert ended is not None
    assert read_state(ended).segments == (*state.segments, replace(other, batches=6))

    assert json_safe(asdict(resumed)) | times == json_safe(asdict(straight)) | times
    for name, value in expected.state_dict().items():
        assert torch.equal(value, pupil.state_dict()[name]), name
    timings = ("images_per_second", "goodput", "waiting_share", "step_seconds", "data_wait_seconds")
    whole, pieces = (
        [{k: v for k, v in line.items() if k not in timings} for line in read_history(tmp_path / x / "history.jsonl")]
        for x in "ab"
    )
    assert whole == pieces


def test_rows_set_aside_are_counted_once_though_batches_are_read_again(tiny_teacher: Segmenter, tmp_path: Path):
    def with_gaps(start: int = 0) -> Iterator[PromptBatch]:
        reasons = [{"corrupt image": 1}, {}, {"corrupt image": 1, "image size": 2}, {"corrupt shard": 4}]
        for number, batch in enumerate(islice(stream(start), 4 - start), start):
            yield replace(batch, rejected=reasons[number])

    config = settings(optim={"steps": 4})
    run(config, tiny_teacher, tmp_path, batches=with_gaps(), told_to_stop=after(3))
    checkpoint = tmp_path / "step-00000003"
    assert read_state(checkpoint).rejected == {"corrupt image": 2, "image size": 2}
    run(config, tiny_teacher, tmp_path, batches=with_gaps(3), resume=checkpoint)
    counted = {"corrupt image": 2, "image size": 2, "corrupt shard": 4}
    assert read_state(tmp_path / "step-00000004").rejected == counted


def test_resuming_a_finished_run_trains_no_more(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(optim={"steps": 2})
    report, _ = run(config, tiny_teacher, tmp_path)
    again, _ = run(config, tiny_teacher, tmp_path, resume=tmp_path / "step-00000002", batches=iter(()))
    assert json_safe(asdict(again)) == json_safe(asdict(report))


def test_the_goodput_of_a_resumed_run_counts_neither_lost_steps_nor_forgets_the_time_they_took(
    tiny_teacher: Segmenter, tmp_path: Path
):
    def killed() -> Iterator[PromptBatch]:
        yield from islice(stream(), 5)
        raise KeyboardInterrupt

    config = settings(optim={"steps": 6}, checkpoint={"every_steps": 2})
    began = time.time() - 40
    log = [History(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        run(config, tiny_teacher, tmp_path, batches=killed(), loggers=log, began=began)
    steps = [line["step_seconds"] for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"]
    assert len(steps) == 5
    state = read_state(tmp_path / "step-00000004")
    assert state.time is not None
    assert state.time.useful_seconds == pytest.approx(sum(steps[:4]))
    report, _ = run(
        config,
        tiny_teacher,
        tmp_path,
        resume=tmp_path / "step-00000004",
        batches=stream(4),
        loggers=log,
        began=began + 9,
    )
    steps = [line["step_seconds"] for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"]
    assert len(steps) == 6
    assert report.useful_seconds == pytest.approx(sum(steps))
    assert report.began == began
    assert 40 < report.wall_seconds < time.time() - began
    assert report.goodput == pytest.approx(sum(steps) / report.wall_seconds)


def test_sigterm_saves_and_ends_the_run(tiny_teacher: Segmenter, tmp_path: Path):
    def interrupted() -> Iterator[PromptBatch]:
        for number, batch in enumerate(stream(), start=1):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    told = Published()
    report, _ = run(settings(), tiny_teacher, tmp_path, batches=interrupted(), publish=told)
    assert read_state(tmp_path / "step-00000002").step == 2
    assert not told, "nothing was evaluated since"
    assert report.checkpoint == str(tmp_path / "step-00000002")
    assert report.metrics == report.before  # nothing was evaluated since
    assert signal.getsignal(signal.SIGTERM) is before


def test_accumulated_batches_train_like_one_large_batch(tiny_teacher: Segmenter, tmp_path: Path):
    # Without features: their unexplained variance is relative to that of the batch.
    weights = {"gamma": 0.0}
    halves = [random_batch(1, 3, seed=seed) for seed in range(8)]
    whole = [joined(first, second) for first, second in zip(halves[::2], halves[1::2], strict=True)]
    one = settings(optim={"steps": 4}, distillation=weights)
    two = settings(optim={"steps": 4, "accumulate": 2}, distillation=weights)
    _, expected = run(one, tiny_teacher, tmp_path / "a", batches=iter(whole))
    _, pupil = run(two, tiny_teacher, tmp_path / "b", batches=iter(halves))
    assert_same_weights(pupil.state_dict(), expected.state_dict(), pupil_of(tiny_teacher, one).state_dict())


def test_labels_alone_need_no_teacher(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(distillation={"beta": 0.0, "gamma": 0.0}, optim={"steps": 1})
    report, pupil = run(config, tiny_teacher, tmp_path)
    assert not pupil.projections
    assert report.step == 1


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("part", ["detr_decoder.layers.1.mlp.fc2", "vision_encoder.backbone.layers.0.attention.v_proj"])
def test_a_nan_is_named_and_never_reaches_the_weights(
    tiny_teacher: Segmenter, tmp_path: Path, part: str, recompute: bool
):
    config = settings(optim={"gradient_checkpointing": recompute, "max_skipped_steps": 0})
    pupil = pupil_of(tiny_teacher, config)
    broken = f"student.net.{part}"
    with torch.no_grad():
        pupil.get_submodule(broken).weight[0, 0] = torch.nan
    before = {name: value.clone() for name, value in pupil.state_dict().items()}
    with pytest.raises(NonFiniteError, match=rf"Step 1: the output of {broken} is not finite.*optim.learning_rate"):
        run(config, tiny_teacher, tmp_path, pupil=pupil)
    for name, value in pupil.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert newest_checkpoint(tmp_path) is None


def test_a_batch_that_gives_nan_is_left_out(
    tiny_teacher: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The run ends with the weights that the other batches alone give."""
    config = settings(optim={"steps": 5, "warmup_steps": 0, "final_lr_share": 1.0})  # the same rate at each step
    bad = random_batch(2, 3, seed=77)
    poisoned = pupil_of(tiny_teacher, config)

    looked_at: list[torch.Tensor] = []
    poisoned.register_forward_pre_hook(lambda module, inputs: looked_at.append(inputs[0]))
    broken = poisoned.student.net.detr_encoder.layers[0].mlp.fc1
    broken.register_forward_hook(lambda *_: _[2] * torch.nan if torch.equal(looked_at[-1], bad.images) else None)
    good = list(islice(stream(), 4))
    report, pupil = run(config, tiny_teacher, tmp_path, pupil=poisoned, batches=iter([*good[:2], bad, *good[2:]]))
    assert read_state(Path(str(report.checkpoint))).skipped == 1
    assert "update left out: Step 3: the output of student.net.detr_encoder.layers.0.mlp.fc1" in capsys.readouterr().out

    without = settings(optim={"steps": 4, "warmup_steps": 0, "final_lr_share": 1.0})
    _, expected = run(without, tiny_teacher, tmp_path / "without", batches=iter(good))
    for name, value in expected.state_dict().items():
        assert torch.equal(value, pupil.state_dict()[name]), name


def test_nan_after_nan_ends_the_run(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(optim={"max_skipped_steps": 2}, checkpoint={"every_steps": 1})
    pupil, calls = pupil_of(tiny_teacher, config), count(1)
    broken = pupil.student.net.detr_encoder.layers[0].mlp.fc1
    broken.register_forward_hook(lambda *_: _[2] * torch.nan if next(calls) > 3 else None)
    with pytest.raises(NonFiniteError, match="The weights are those of step"):
        run(config, tiny_teacher, tmp_path, pupil=pupil, evaluate=lambda _: {"miou_all": 0.0})
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert all(value.isfinite().all() for value in load_segmenter(newest).state_dict().values())


def test_a_loss_term_that_overflows_is_named(tiny_teacher: Segmenter, tmp_path: Path):
    config = settings(distillation={"task": {"dice": 1e39}}, optim={"max_skipped_steps": 0})
    with pytest.raises(
        NonFiniteError, match="Step 1: the loss terms task, distillation are not finite, though the outputs"
    ):
        run(config, tiny_teacher, tmp_path)


def test_steps_and_ranks_draw_their_own_random_numbers():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600
    torch.manual_seed(max(seeds))  # in torch's range
