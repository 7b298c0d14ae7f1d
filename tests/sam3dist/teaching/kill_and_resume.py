"""Teaches in child processes that are killed at random moments; `test_killed.py` runs it.

    python kill_and_resume.py TEACHER_DIR SHARDS_DIR OUT_DIR KILLS

A process of its own, because a child may only be forked before torch has started its threads. Prints one JSON line:
how many files the killed runs had finished by then, and how many there are in the end.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from itertools import groupby
from pathlib import Path

import torch

from sam3dist.config.distill import DataConfig, EvalConfig
from sam3dist.data.shards import open_shards
from sam3dist.models.segmenter import segment
from sam3dist.models.teacher import load_teacher
from sam3dist.teaching.store import answers_path, finished
from sam3dist.teaching.teach import teach_shard


def teach(teacher_dir: str, shards_dir: str, folder: Path) -> None:
    torch.set_num_threads(1)
    teacher = load_teacher(teacher_dir, "cpu", "fp32")
    data, batch = DataConfig(decode_threads=1), EvalConfig(images_per_batch=2, prompts_per_batch=8)
    for path, groups in groupby(open_shards(shards_dir).row_groups, key=lambda group: group.path):
        answers = answers_path(folder, Path(path).name)
        teach_shard(list(groups), answers, lambda b: segment(teacher, b), teacher.image_size, ("vision",), data, batch)


def in_child(teacher_dir: str, shards_dir: str, folder: Path, kill_after_s: float | None = None) -> bool:
    """Whether the child came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            teach(teacher_dir, shards_dir, folder)
            status = 0
        finally:
            os._exit(status)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return not os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".tmp"}


def main(teacher_dir: str, shards_dir: str, out: str, kills: str) -> None:
    whole = Path(out) / "whole"
    whole.mkdir(parents=True)
    started = time.monotonic()
    assert in_child(teacher_dir, shards_dir, whole)
    duration, expected = time.monotonic() - started, contents(whole)
    draw = random.Random(0)
    killed = kept = 0
    while killed < int(kills):
        folder = Path(out) / f"killed-{killed}"
        folder.mkdir()
        if in_child(teacher_dir, shards_dir, folder, kill_after_s=draw.uniform(0.1, duration)):
            shutil.rmtree(folder)
            duration *= 0.9  # the first one was slowed down by others on this machine
            continue
        killed += 1
        done = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet") if finished(path)}
        kept += len(done)
        assert in_child(teacher_dir, shards_dir, folder)
        assert contents(folder) == expected, f"run {killed} differs"
        assert {path: path.stat().st_mtime_ns for path in done} == done, f"run {killed} made finished files again"
    print(json.dumps({"kept": kept, "files": len(expected)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
