"""A Ray cluster of several nodes on one machine, each killed, cut off or told to go like a machine of its own.

As root every node has a network namespace (a machine's network card) and a process namespace (what dies with it). The
namespaces hang on one bridge. Without root all nodes share the machine's network and no link can be cut.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from tests.cluster.conftest import REPOSITORY, free_ports

ROOT = os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "unshare"))
"""Whether nodes have networks of their own."""
NETWORK = "10.78.0"
OF_THE_CLUSTER = tuple(
    f"ray::{name}"
    for name in (
        *("IDLE", "DashboardAgent", "RuntimeEnvAgent"),
        *("_AutoscalingCoordinator", "_StatsActor", "_UsageCollectionActor", "ActorLocationTracker"),
    )
)
"""Processes that Ray keeps for whoever comes next."""
Answer = TypeVar("Answer")


@dataclass
class Node:
    """A machine: the Ray processes on it, and its link to the others."""

    number: int
    namespace: str
    address: str
    temp_dir: Path
    process: subprocess.Popen[bytes] | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        """The words as a command that runs on this machine."""
        return ["ip", "netns", "exec", self.namespace, *words] if ROOT else list(words)

    def beside_ray(self, words: Sequence[str]) -> list[str]:
        """The words as a command among the processes of Ray on this machine, with which it dies."""
        if not ROOT or self.process is None:
            return self.command(words)
        (first,) = psutil.Process(self.process.pid).children()
        return ["nsenter", f"--target={first.pid}", "--pid", "--net", "--mount", *words]

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's processes on it whose title begins so, such as "ray::_RayTrainWorker"."""
        found: list[psutil.Process] = []
        if self.process is None:  # a machine without Ray
            return found
        with suppress(psutil.NoSuchProcess):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if " ".join(each.cmdline()).startswith(title):
                        found.append(each)
        return found

    def kill(self) -> None:
        """As if the power went: no process of it does anything any more."""
        assert self.process is not None
        doomed = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for each in doomed:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(doomed, timeout=20)
        self.process.wait(20)

    def cut(self) -> None:
        """Unplug the cable: packets are lost, and nobody is told."""
        _ip("-n", _switch_of(self.namespace), "link", "set", f"port{self.number}", "down")

    def heal(self) -> None:
        """Plug the cable in again."""
        _ip("-n", _switch_of(self.namespace), "link", "set", f"port{self.number}", "up")


@dataclass
class Nodes:
    """The machines of one cluster. `head` runs Ray's control service, and drivers."""

    name: str
    root: Path
    variables: dict[str, str]
    port: int = 6379
    dashboard: int = 8265
    nodes: dict[int, Node] = field(default_factory=dict)

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def address(self) -> str:
        return f"{self.head.address}:{self.port}"

    def start(self, number: int, cpus: int = 1, **variables: str) -> Node:
        """The machine of this number, with Ray on it; number 0 is the head, which offers no CPU.

        variables: of the environment of Ray on this machine alone.
        """
        node = self.machine(number)
        shutil.rmtree(node.temp_dir, ignore_errors=True)  # a new machine has an empty disk
        agent, client, metrics = free_ports(3)
        words = [str(Path(sys.executable).parent / "ray"), "start", "--block", f"--node-ip-address={node.address}"]
        words += [f"--temp-dir={node.temp_dir}", "--object-store-memory=100000000", "--disable-usage-stats"]
        words += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        if number == 0:
            words += ["--head", f"--port={self.port}", "--num-cpus=0", f"--dashboard-port={self.dashboard}"]
            words += ["--dashboard-host=0.0.0.0", f"--ray-client-server-port={client}"]
        else:
            self._wait_for_head()
            words += [f"--address={self.address}", f"--num-cpus={cpus}"]
        # A process namespace dies as a whole with its first process.
        own = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"] if ROOT else []
        with Path(self.root, f"node-{number}.log").open("ab") as log:
            node.process = subprocess.Popen(
                node.command([*own, *words]),
                env=self.environment() | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=REPOSITORY,
            )
        return node

    def environment(self) -> dict[str, str]:
        """Of Ray's processes and of jobs."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        card = {"GLOO_SOCKET_IFNAME": "eth0"} if ROOT else {}
        return kept | self.variables | card | {"PATH": path, "RAY_ADDRESS": self.address}

    def run(self, words: Sequence[str], log: Path, on: int = 0, **variables: str) -> subprocess.Popen[bytes]:
        """A program on the head, or on another machine, which writes to this log; killed as a group."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.machine(on).beside_ray(words) if on else self.head.command(words),
                env=self.environment() | variables,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=REPOSITORY,
            )

    def ask(self, question: str) -> str:
        """What a Python program of these lines prints that is connected to the cluster, or why it could not."""
        program = f"import ray\nray.init(address='{self.address}', logging_level='ERROR')\n{question}"
        found = subprocess.run(
            self.head.command([sys.executable, "-c", program]),
            env=self.environment(),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return found.stdout.strip() if found.returncode == 0 else f"no answer: {found.stderr[-3000:]}"

    def wait_for_cpus(self, cpus: float, seconds: float = 150) -> None:
        """Return once so many CPUs are free, and no more placement groups are held."""
        question = (
            "from ray.util.state import list_placement_groups\n"
            "held = [g for g in list_placement_groups(limit=1000) if g.state != 'REMOVED']\n"
            "print(ray.available_resources().get('CPU', 0), len(held))"
        )
        until(lambda: self.ask(question) == f"{float(cpus)} 0", seconds, lambda: self.ask(question))

    def leftovers(self) -> list[str]:
        """Titles of Ray's processes that still hold an actor or a task."""
        titles = [" ".join(each.cmdline()).strip() for node in self.nodes.values() for each in node.processes("ray::")]
        return [title for title in titles if not title.startswith(OF_THE_CLUSTER)]

    def machine(self, number: int) -> Node:
        """The machine of this number; a new one has no Ray on it."""
        if number not in self.nodes:
            self.nodes[number] = self._plugged_in(number)
        return self.nodes[number]

    def _wait_for_head(self, seconds: int = 90) -> None:
        """Return once Ray's control service listens."""
        knock = (
            "import socket, time\n"
            f"for _ in range({2 * seconds}):\n"
            f"    if not socket.socket().connect_ex(('{self.head.address}', {self.port})): break\n"
            "    time.sleep(0.5)\n"
            "else: raise SystemExit('nobody listens')"
        )
        subprocess.run(self.head.command([sys.executable, "-c", knock]), check=True)

    def _plugged_in(self, number: int) -> Node:
        namespace, address = f"{self.name}-{number}", f"{NETWORK}.{10 + number}" if ROOT else "127.0.0.1"
        if ROOT:
            switch = _switch_of(namespace)
            _ip("netns", "add", namespace)
            _ip(
                "-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace
            )
            _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            for card in ("lo", "eth0"):
                _ip("-n", namespace, "link", "set", card, "up")
        return Node(number, namespace, address, Path(tempfile.mkdtemp(prefix="s3f-", dir="/tmp")))


@contextmanager
def nodes(root: Path, **variables: str) -> Iterator[Nodes]:
    """A network without machines; those that are started in it are gone in the end. Asks for a token."""
    name = f"s3f{secrets.token_hex(2)}"
    tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    quiet = {"RAY_memory_monitor_refresh_ms": "0", "OMP_NUM_THREADS": "1"}
    cluster = Nodes(name, root, tokens | quiet | variables)
    if not ROOT:
        cluster.port, cluster.dashboard = free_ports(2)
    switch = _switch_of(f"{name}-0")
    if ROOT:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
    try:
        yield cluster
    finally:
        for node in cluster.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.kill()
            shutil.rmtree(node.temp_dir, ignore_errors=True)
            if ROOT:
                _ip("netns", "delete", node.namespace)
        if ROOT:
            _ip("netns", "delete", switch)


def until(done: Callable[[], Answer], seconds: float, otherwise: Callable[[], object]) -> Answer:
    """The first answer that is not empty; an AssertionError with what `otherwise` says after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {otherwise()}"
        time.sleep(0.2)
    return answer


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a program and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _switch_of(namespace: str) -> str:
    return f"{namespace.rpartition('-')[0]}-switch"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
