"""Questions asked before a job starts, because Ray would wait for ever where the answer is no."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.state import list_nodes, list_placement_groups
from ray.util.state.exception import RayStateApiException

from sam3dist.errors import ResourceError

if TYPE_CHECKING:
    from sam3dist.config.distill import StrategyConfig

TRIAL_CPUS = 0.1
"""What the driver of one trial reserves; it only waits for the trial's workers."""
DATA_CPUS = 0.0
"""Head-room for Ray Data: none, since references need no task (streams.py; a test holds this)."""
STATE_TIMEOUT_S = 15


@dataclass(frozen=True)
class Node:
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Demand:
    """`trials` runs at once, each of `workers` that need `cpus` and `gpus`, and as much for each of the `teachers` that
    all share; 0 trials is a single run."""

    workers: int
    cpus: float
    gpus: float
    trials: int = 0
    teachers: int = 0

    @property
    def all_workers(self) -> int:
        return self.workers * max(self.trials, 1) + self.teachers

    @property
    def all_cpus(self) -> float:
        return self.all_workers * self.cpus + self.trials * TRIAL_CPUS + DATA_CPUS

    def bundles(self) -> list[dict[str, float]]:
        """What Ray has to place, worker by worker."""
        worker = {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})
        return [worker] * self.all_workers + [{"CPU": TRIAL_CPUS}] * self.trials

    def __str__(self) -> str:
        what = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        runs = f"{self.trials} trials at once, each of " if self.trials else ""
        drivers = f" and {TRIAL_CPUS:g} CPU for its driver" if self.trials else ""
        teachers = f", and {self.teachers} teachers with as much" if self.teachers else ""
        return f"{runs}{self.workers} workers with {what} each{drivers}{teachers}"


def check_resources(strategy: StrategyConfig, teachers: int = 0, wait_s: float = 0) -> None:
    """Return once the cluster has room for a run; ResourceError says what is asked, what is there, and the way out.

    Room is what the nodes have, not what is free: other jobs end. On an autoscaling cluster `wait_s` is how long
    it may take to grow; it is asked for all the resources at once. A run that may do with fewer workers is content
    with those.
    """
    demand = _demand(strategy, teachers=teachers)
    nodes = alive_nodes()
    if not fits(demand, nodes) and wait_s > 0:
        nodes = _grown(demand, wait_s)
    if not fits(replace(demand, workers=strategy.min_workers or strategy.num_workers), nodes):
        raise ResourceError(refusal(demand, nodes, wait_s))


def room_for_trials(strategy: StrategyConfig, wanted: int, teachers: int = 0, wait_s: float = 0) -> int:
    """How many runs the cluster holds at once, at most `wanted`; ResourceError, as above, where not even one.

    More would deadlock: each would hold some of the workers that the others wait for.
    """
    demand = _demand(strategy, wanted, teachers)
    nodes = alive_nodes()
    if not fits(demand, nodes) and wait_s > 0:
        nodes = _grown(demand, wait_s)
    room = next((trials for trials in range(wanted, 0, -1) if fits(replace(demand, trials=trials), nodes)), 0)
    if not room:
        raise ResourceError(refusal(replace(demand, trials=1), nodes, wait_s))
    return room


def _demand(strategy: StrategyConfig, trials: int = 0, teachers: int = 0) -> Demand:
    return Demand(strategy.num_workers, strategy.cpus_per_worker, float(strategy.use_gpu), trials, teachers)


def fits(demand: Demand, nodes: list[Node]) -> bool:
    """Whether the nodes can hold every worker, none of them split, and the drivers beside them."""
    room = sum(_workers_on(node, demand) for node in nodes)
    # A little less than equal, because a cluster of 2.1 CPUs adds up to 2.0999.
    return room >= demand.all_workers and sum(node.cpus for node in nodes) >= demand.all_cpus - 1e-6


def _workers_on(node: Node, demand: Demand) -> int:
    by_cpu = math.floor(node.cpus / demand.cpus + 1e-6)
    return min(by_cpu, _by_gpu(node, demand)) if demand.gpus else by_cpu


def _by_gpu(node: Node, demand: Demand) -> int:
    return math.floor(node.gpus / demand.gpus + 1e-6)


def refusal(demand: Demand, nodes: list[Node], waited_s: float = 0) -> str:
    """One line: what is asked, what is there, the way out."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    has = f"{len(nodes)} node{'s' * (len(nodes) != 1)} with {cpus:g} CPU and {gpus:g} GPU"
    waited = f" after {waited_s:g} s of waiting" if waited_s else ""
    if demand.gpus and not gpus:
        way_out = "set strategy.use_gpu=false or join a cluster with GPUs (run.address)"
    else:
        most = sum(_workers_on(node, demand) for node in nodes) - demand.teachers
        ways = [f"set strategy.num_workers={most}"] if 0 < most < demand.workers else []
        if demand.gpus and sum(_by_gpu(node, demand) for node in nodes) < demand.all_workers:
            ways.append("join a cluster with more GPUs (run.address)")
        else:
            ways += ["lower strategy.cpus_per_worker", f"offer more CPUs (run.num_cpus={math.ceil(demand.all_cpus)})"]
        way_out = ", or ".join(ways)
    return f"not enough resources: {demand} are asked; the cluster has {has}{waited}; {way_out}."


def alive_nodes() -> list[Node]:
    """The nodes of the connected cluster that are alive."""
    resources: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in resources]


def _grown(demand: Demand, wait_s: float) -> list[Node]:
    request_resources(bundles=demand.bundles())  # what an autoscaler listens to; without one it changes nothing
    deadline = time.monotonic() + wait_s
    try:
        while time.monotonic() < deadline and not fits(demand, alive_nodes()):
            time.sleep(min(2.0, wait_s))
    finally:
        request_resources(bundles=[])
    return alive_nodes()


def check_state_api() -> None:
    """Return if Ray's State API answers. Without it a stopped trial never gives its CPUs back and a search hangs."""
    try:
        list_nodes(address=_own(), timeout=STATE_TIMEOUT_S)
    except (RayStateApiException, ConnectionError) as error:
        raise ResourceError(
            f"the cluster's State API does not answer ({type(error).__name__}), so stopped trials would keep their "
            "CPUs for ever; start Ray with its dashboard (`pip install 'ray[default]'`, include_dashboard)."
        ) from error


def free_cpus() -> float:
    """CPUs that nobody has reserved right now."""
    return float(ray.available_resources().get("CPU", 0.0))


def held_placement_groups() -> set[str]:
    """The ids of the placement groups that hold resources or wait for them."""
    groups = list_placement_groups(address=_own(), timeout=STATE_TIMEOUT_S, limit=10_000)
    return {group.placement_group_id for group in groups if group.state != "REMOVED"}


def wait_until_free(cpus: float, placement_groups: set[str], timeout_s: float = 60) -> str | None:
    """None once `cpus` are free again and no placement group but the given ones is held; else what is missing."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            free, held = free_cpus(), held_placement_groups() - placement_groups
        except (RayStateApiException, ConnectionError) as error:
            return f"the cluster's State API does not answer any more ({type(error).__name__})"
        if free >= cpus - 1e-6 and not held:
            return None
        if time.monotonic() > deadline:
            return f"{cpus - free:g} CPUs and {len(held)} placement groups did not come back within {timeout_s:g} s"
        time.sleep(1)


def _own() -> str:
    """The address of the connected cluster, since this machine may run another one beside it."""
    return str(ray.get_runtime_context().gcs_address)
