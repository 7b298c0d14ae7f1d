"""Starts a script in several processes that make one group, on this machine and CPU."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Ranks:
    """Processes of one group, one thread each."""

    processes: list[subprocess.Popen]
    logs: list[Path]

    def wait(self, seconds: float) -> None:
        """Returns when all have ended well. Else an AssertionError shows the ends of what they said."""
        try:
            codes = [process.wait(timeout=seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        said = "\n".join(log.read_text()[-3000:] for log in self.logs)
        assert not any(codes), said


def start(ranks: int, module: str, *arguments: Path | str, logs: Path) -> Ranks:
    """So many processes that run `python -m MODULE ARGUMENTS`; what they say goes into a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    files = [logs / f"{ranks}-ranks-{rank}.log" for rank in range(ranks)]
    processes = []
    for rank, file in enumerate(files):
        with file.open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, arguments)],
                    cwd=ROOT,
                    env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return Ranks(processes, files)
