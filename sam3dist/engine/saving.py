"""Checkpoints written beside training: the loop waits for a copy of the state in memory, not for the disk.

What a checkpoint holds is in checkpoint.py, where it is kept and how it is published in folder.py.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from sam3dist.engine.checkpoint import TrainingState, as_plain, json_safe, versions
from sam3dist.engine.folder import STUDENT, TRAINING, CheckpointFolder, Entry
from sam3dist.errors import CheckpointError, NonFiniteError, first_line
from sam3dist.models.checkpoint import save_segmenter
from sam3dist.strategies.processes import any_rank, barrier
from sam3dist.types import Report

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig
    from sam3dist.models.segmenter import Pupil
    from sam3dist.strategies.protocol import Strategy

STATE_FILE = "state.json"
ATTEMPTS = 3
"""Checkpoints in a row that may fail before the run does; the last one is written as often."""


class Saver:
    """One rank's side of saving. All ranks call `begin` and `settle` together; one checkpoint at a time is written."""

    def __init__(
        self,
        folder: CheckpointFolder,
        scratch: Path | None,
        pupil: Pupil,
        strategy: Strategy,
        config: DistillConfig,
        logs: Mapping[str, Path] | None = None,
    ) -> None:
        """scratch: a directory of this rank alone, from which an object store is written. logs: files of this machine
        that rank 0 puts into every checkpoint, by name, for whoever goes on elsewhere."""
        self.folder, self.scratch, self.pupil, self.strategy, self.config = folder, scratch, pupil, strategy, config
        self.logs = logs or {}
        # Of its own, so that its messages do not mix with those of training; NCCL's would need the GPU.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.stager = DefaultStager(StagingOptions(False, False, False, False))
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was begun and not settled; the same on every rank."""
        return self.thread is not None

    @property
    def writing(self) -> bool:
        """Whether this rank still writes its part."""
        return self.thread is not None and self.thread.is_alive()

    def begin(self, state: TrainingState, score: float | None) -> None:
        """Copy the state and write it in the background. score: of an evaluation of this very step."""
        assert not self.pending, "settle the last one first"
        self.entry = Entry(f"step-{state.step:08d}", state.step, score)
        directory = self.folder.begun(self.entry.name, self.scratch)
        self.error = None
        if self.strategy.rank == 0 or self.folder.remote:
            try:
                directory = self.folder.begin(self.entry.name, self.scratch)
            except OSError as error:  # such as a full disk; `settle` tells the others
                self.error = error
        barrier()
        training = self.stager.stage(self.strategy.training_state())
        student = self.strategy.student_state()
        self.thread = threading.Thread(target=self._write, args=(directory, state, training, student), daemon=True)
        self.thread.start()

    def settle(self) -> str | None:
        """Wait for the checkpoint, and publish it: its path. None where it failed on any rank, after saying why.

        Rank 0's reason is in `error`, so are those of other ranks on them.
        """
        assert self.thread is not None
        self.thread.join()
        self.thread = None
        device = self.strategy.device
        if not any_rank(self.error is not None, device) and self.strategy.rank == 0:
            try:
                self.folder.publish(self.entry, self.strategy.world_size, self.config.checkpoint.keep)
            except (OSError, CheckpointError) as error:
                self.error = error
        failed = any_rank(self.error is not None, device)
        if self.scratch is not None:
            shutil.rmtree(self.scratch / self.entry.name, ignore_errors=True)
        if not failed:
            return self.folder.path(self.entry.name)
        self.error = self.error or CheckpointError("another worker could not write its part")
        if self.strategy.rank == 0:
            self.folder.discard(self.entry.name, self.scratch)
        return None

    def _write(
        self, directory: Path, state: TrainingState, training: dict[str, Any], student: dict[str, Tensor] | None
    ) -> None:
        """This rank's part: its share of the training state; on rank 0 also the student and what describes the run."""
        try:
            rank = self.strategy.rank
            # Together with the other ranks, hence also by one that has failed already.
            dcp.save(training, checkpoint_id=directory / TRAINING, process_group=self.group, no_dist=self.group is None)
            if self.error is not None:
                return
            files = sorted((directory / TRAINING).glob(f"__{rank}_*"))
            if rank == 0:
                assert student is not None
                save_segmenter(self.pupil.student, directory / STUDENT, student)
                settings = yaml.safe_dump(as_plain(self.config), sort_keys=False)
                (directory / "config.yaml").write_text(settings, encoding="utf-8")
                for name, file in self.logs.items():
                    if file.is_file():
                        shutil.copyfile(file, directory / name)
                reached = json_safe(asdict(replace(state, versions=versions())))
                (directory / STATE_FILE).write_text(json.dumps(reached, indent=2, allow_nan=False), encoding="utf-8")
                described = (STATE_FILE, "config.yaml", *self.logs)
                files += [directory / name for name in described if (directory / name).is_file()]
                files += [file for file in (directory / STUDENT).rglob("*") if file.is_file()]
                files.append(directory / TRAINING / ".metadata")
            self.folder.add(self.entry.name, directory, files, rank)
        except Exception as error:  # the training thread asks for it
            self.error = error


class Saving:
    """The checkpoints of a run, one after the other, and who is told of them. All ranks call everything together."""

    def __init__(
        self, saver: Saver, publish: Callable[[Report], None], say: Callable[[str], None], newest: str | None
    ) -> None:
        self.saver, self.publish, self.say = saver, publish, say
        self.newest = newest  # where the last checkpoint is that was published
        self.told: Report | None = None  # the evaluation that waits for its checkpoint
        self.failed = 0  # in a row

    def begin(self, state: TrainingState, measured: bool, lasting: bool) -> None:
        """Save this state, `measured` at its very step or not. A lasting one, after which nothing comes, is waited for
        and tried again where it fails."""
        self.settle()
        assert state.report is not None
        self.told = state.report if measured else None
        score = state.report.score if measured and isfinite(state.report.score) else None
        self.saver.begin(state, score)
        while lasting and self.saver.pending:
            if not self.settle(again=True):
                time.sleep(self.failed)
                self.saver.begin(state, score)

    @contextmanager
    def finished_where_all_fail(self) -> Iterator[None]:
        """Inside, an error that every rank raises leaves the checkpoint that is being written as a good one.

        Where one rank alone fails the others cannot be met any more.
        """
        try:
            yield
        except BaseException as error:
            if self.saver.strategy.world_size == 1 or isinstance(error, NonFiniteError):
                self.settle()
            raise

    def settle(self, again: bool = False) -> bool:
        """Wait for the checkpoint that is being written, if there is one, and tell of it; False where it failed.

        again: whoever calls will try once more. Raises CheckpointError where `ATTEMPTS` in a row have failed.
        """
        if not self.saver.pending:
            return True
        path = self.saver.settle()
        if path is None:
            self.failed += 1
            assert self.saver.error is not None
            reason = f"{self.saver.entry.name} could not be saved ({first_line(self.saver.error)})"
            if self.failed == ATTEMPTS:
                raise CheckpointError(
                    f"{reason}, nor could the {ATTEMPTS - 1} before; make room, or mend checkpoint.storage_path, and "
                    f"start the run again: it goes on from {self.newest or 'its beginning'}."
                ) from self.saver.error
            self.say(f"{reason}; the run goes on")
        else:
            self.failed, self.newest = 0, path
        if self.told is not None and not (path is None and again):
            self.publish(replace(self.told, checkpoint=self.newest))
            self.told = None
        return path is not None
