"""Two training processes that take turns, for benchmarks/train_overhead.py: one is frozen while the other works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import KEPT_MEMORY

POLL_S = 0.002
VARIABLES = {"OMP_NUM_THREADS": "1", **KEPT_MEMORY}
"""As a worker has them by itself; a bare loop is given the same."""
START_S, BLOCK_S, END_S = 300.0, 300.0, 60.0
"""What each part may take."""


@dataclass(frozen=True)
class Block:
    """What one block took."""

    seconds: float
    undelayed_seconds: float  # without those in which the thread that trains could go on but had no CPU
    cpu_seconds: float  # of the process that trains
    others_cpu_seconds: float  # of all others of the arm


class Arm:
    """A process, with all that it starts, that writes a line "train" into history.jsonl after each block of steps."""

    def __init__(self, words: Sequence[str], run_dir: Path, worker: str | None = None) -> None:
        """worker: how the title of the process that trains begins; None if that is the one that is started."""
        self.worker = worker
        self.history, self.log = run_dir / "history.jsonl", run_dir.with_suffix(".log")
        self.began = time.monotonic()
        with self.log.open("wb") as out:
            environment = {**os.environ, **VARIABLES}
            # Linux shares the CPUs out among sessions first: with one each, both arms get as much.
            self.process = subprocess.Popen(
                words, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *failure: object) -> None:
        self.thaw()
        self.process.terminate()  # a cluster that it started ends with it
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            for pid in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def until_first_line(self) -> float:
        """Seconds from its start until its first block was done."""
        self._wait_for_line(0, START_S)
        return time.monotonic() - self.began

    def block(self) -> Block:
        """Let it make its next block; frozen before and after."""
        lines, training = self._lines(), self.trains()
        thread = _busiest_thread(training)
        before, delayed = {pid: _cpu_seconds(pid) for pid in self._processes()}, _delayed_seconds(thread)
        began = time.monotonic()
        self.thaw()
        self._wait_for_line(lines, BLOCK_S)
        seconds = time.monotonic() - began
        self.freeze()
        used = {pid: _cpu_seconds(pid) - before.get(pid, 0.0) for pid in self._processes()}
        own = used.pop(training)
        return Block(seconds, seconds - (_delayed_seconds(thread) - delayed), own, sum(used.values()))

    def freeze(self) -> None:
        self._tell(signal.SIGSTOP)

    def thaw(self) -> None:
        self._tell(signal.SIGCONT)

    def losses(self) -> list[float]:
        """Of each block."""
        lines = self.history.read_text().splitlines(keepends=True)
        content = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line["loss/total"] for line in content if line["kind"] == "train"]

    def trains(self) -> int:
        """The process that trains."""
        if self.worker is None:
            return self.process.pid
        for pid in self._processes():
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(self.worker.encode()):
                return pid
        raise AssertionError(f"no process {self.worker}")

    def niceness(self) -> int:
        return os.getpriority(os.PRIO_PROCESS, self.trains())

    def renice(self, niceness: int) -> None:
        """Give it, with its threads, this niceness, which must not be below its own."""
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _lines(self) -> int:
        return self.history.read_bytes().count(b'"kind": "train"') if self.history.is_file() else 0

    def _wait_for_line(self, known: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        size = -1
        while True:
            now = self.history.stat().st_size if self.history.is_file() else 0
            if now != size and self._lines() > known:
                return
            size = now
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(POLL_S)

    def _processes(self) -> list[int]:
        """It, and whatever it has started."""
        children: dict[int, list[int]] = {}
        for pid, parent in _parents():
            children.setdefault(parent, []).append(pid)
        found = [self.process.pid]
        for pid in found:  # grows on the way
            found += children.get(pid, [])
        return found


def _cpu_seconds(pid: int) -> float:
    """What a process has computed so far, all threads together; 0 of one that is gone."""
    with suppress(OSError):
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _busiest_thread(pid: int) -> Path:
    """Where the kernel says of the thread that trains how long it ran and waited for a CPU."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return max((each / "schedstat" for each in threads), key=lambda file: int(file.read_text().split()[0]))


def _delayed_seconds(schedstat: Path) -> float:
    return int(schedstat.read_text().split()[1]) / 1e9


def _parents() -> Iterator[tuple[int, int]]:
    """Every process of the machine with its parent."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):  # ended meanwhile
                stat = Path(f"/proc/{entry}/stat").read_text()
                yield int(entry), int(stat.rpartition(")")[2].split()[1])
