"""Students with BatchNorm on two ranks: each counts other images, and all evaluate and save the same network."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from sam3dist.models.checkpoint import load_segmenter, save_segmenter
from sam3dist.models.student import build_student
from sam3dist.strategies.processes import share_statistics
from tests.sam3dist.runs import pupil_of, run, settings
from tests.sam3dist.strategies.two_ranks import share, validate

TINY = {"backbone": "mobilenetv4_conv_small_050", "image_size": 64, "vision_depth": None}


def averages(network: nn.Module) -> torch.Tensor:
    parts = (part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    return torch.cat([value for part in parts for value in (part.running_mean, part.running_var)]).clone()


def rank_of_two(rank: int, port: int, teacher_dir: Path, out: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    teacher = load_segmenter(teacher_dir)
    for kind in ("ddp", "fsdp"):
        config = settings(student=TINY, strategy={"kind": kind, "precision": "fp32"}, optim={"steps": 2})
        pupil = pupil_of(teacher, config)
        evaluate = validate(rank, 2, all_reduced)
        counted = []

        def counting(module: nn.Module, evaluate=evaluate, pupil=pupil, counted=counted) -> dict:
            counted.append(averages(pupil))
            return evaluate(module)

        report, _ = run(config, teacher, out / kind, batches=share(rank, 2), pupil=pupil, evaluate=counting)
        torch.save((counted[-1], averages(pupil), report.metrics), out / f"{kind}-{rank}.pt")
    dist.destroy_process_group()


def all_reduced(tensor: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(tensor)
    return tensor


@pytest.mark.slow
def test_two_ranks_evaluate_with_the_mean_of_what_each_has_counted(tiny_teacher_dir: Path, tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(rank_of_two, (port, tiny_teacher_dir, tmp_path), nprocs=2)
    for kind in ("ddp", "fsdp"):
        (own, first, metrics), (other, second, same) = (torch.load(tmp_path / f"{kind}-{rank}.pt") for rank in (0, 1))
        assert not torch.equal(own, other)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, (own + other) / 2)
        assert str(metrics) == str(same)  # equal, with NaN where nothing was found
        saved = load_segmenter(next((tmp_path / kind).glob("*/student")))
        assert torch.equal(averages(saved), first)


def test_one_process_alone_keeps_its_statistics(tiny_teacher, make_batch, tmp_path: Path):
    student = build_student(settings(student=TINY | {"detr_width": None, "init": "copy"}).student, tiny_teacher, seed=1)
    share_statistics(student)
    student(make_batch().images, make_batch().image_of_prompt, make_batch().prompts)
    counted = averages(student)
    save_segmenter(student.eval(), tmp_path)
    assert torch.equal(averages(load_segmenter(tmp_path)), counted)
