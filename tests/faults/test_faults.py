"""What happens to a run of two workers on two machines when something breaks: `make faults`, about half an hour.

Each fault is made to land, each run ends by itself, with the student of a run that nothing happened to, and leaves
nothing behind on the cluster.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sam3dist.data.samples.write import scene_shards
from sam3dist.engine.checkpoint import read_state
from tests.faults.conftest import EVERY, STEPS, Note
from tests.faults.job import Job, student_of
from tests.faults.nodes import ROOT, Node, Nodes, end, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
Start = Callable[..., Job]
FAULT_AT = 50
WORKER, COORDINATOR = "ray::RayTrainWorker", "ray::SplitCoordinator"
networks = pytest.mark.skipif(not ROOT, reason="only root can give each node a network of its own")


def killed(node: Node, title: str) -> float:
    """The moment in which the processes of this title on a node were killed, of which there must be some."""
    doomed = node.processes(title)
    assert doomed, f"no {title} on node {node.number}"
    for each in doomed:
        each.kill()
    psutil.wait_procs(doomed, timeout=20)
    return time.monotonic()


def at_work(cluster: Nodes) -> list[Node]:
    """The nodes on which the run trains."""
    return [node for number, node in cluster.nodes.items() if number and node.processes(WORKER)]


def assert_undisturbed(report: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    """The same steps, images, metrics and weights, to the last bit."""
    assert report["complete"]
    assert (report["step"], report["metrics"]) == (undisturbed["step"], undisturbed["metrics"])
    state, expected = (read_state(Path(each["checkpoint"])) for each in (report, undisturbed))
    assert (state.images, state.batches) == (expected.images, expected.batches)
    assert student_of(report) == student_of(undisturbed)


def assert_nothing_left(cluster: Nodes, cpus: float = 2) -> None:
    cluster.wait_for_cpus(cpus)
    until(lambda: not cluster.leftovers(), 30, cluster.leftovers)


def test_a_train_worker_is_killed(job: Start, two_nodes: Nodes, undisturbed: dict[str, Any], note: Note):
    run = job()
    step = run.reach(FAULT_AT)
    since = killed(at_work(two_nodes)[0], WORKER)
    seconds, start = run.recover(since)
    assert_undisturbed(run.finish(), undisturbed)
    assert step - start <= EVERY + 2
    note("`kill -9` of a train worker", "its group starts again, same student", seconds, step - start)
    assert_nothing_left(two_nodes)


def test_the_process_that_hands_out_the_data_is_killed(
    job: Start, two_nodes: Nodes, undisturbed: dict[str, Any], note: Note
):
    run = job()
    step = run.reach(FAULT_AT)
    (node,) = (each for each in two_nodes.nodes.values() if each.processes(COORDINATOR))
    since = killed(node, COORDINATOR)
    report = run.finish()
    assert_undisturbed(report, undisturbed)
    if run.resumed():
        seconds, lost = run.recover(since)
        note("`kill -9` of Ray Data's coordinator", "the group starts again, same student", seconds, step - lost)
    else:
        note("`kill -9` of Ray Data's coordinator", "nothing: the references were handed out", 0, 0)
    assert_nothing_left(two_nodes)


def test_a_machine_dies_and_another_takes_its_place(
    job: Start, two_nodes: Nodes, undisturbed: dict[str, Any], note: Note
):
    run = job()
    two_nodes.start(3)
    step = run.reach(FAULT_AT)
    at_work(two_nodes)[0].kill()
    since = time.monotonic()
    seconds, start = run.recover(since)
    assert_undisturbed(run.finish(), undisturbed)
    assert step - start <= EVERY + 2
    note("a node's power fails", "goes on with a spare node, same student", seconds, step - start)
    assert_nothing_left(two_nodes)


def test_the_driver_is_killed_and_started_again(job: Start, two_nodes: Nodes, undisturbed: dict[str, Any], note: Note):
    run = job()
    step = run.reach(FAULT_AT)
    run.kill()
    since = time.monotonic()
    run.start()
    seconds, start = run.recover(since)
    assert_undisturbed(run.finish(), undisturbed)
    assert step - start <= EVERY + 2
    note("`kill -9` of the driver", "the same command goes on, same student", seconds, step - start)
    assert_nothing_left(two_nodes)


@networks
def test_a_cable_is_cut_and_plugged_in_again(job: Start, two_nodes: Nodes, note: Note):
    run = job({"strategy.min_workers": 1, "optim.steps": 3 * STEPS})
    step = run.reach(FAULT_AT)
    lost = two_nodes.nodes[2]
    lost.cut()
    since = time.monotonic()
    seconds, start = run.recover(since)
    assert step - start <= EVERY + 2
    note("a node's cable is cut", "goes on with the other node", seconds, step - start)
    lost.heal()
    lost.kill()  # what was declared dead may not come back; Kubernetes starts its pod again
    two_nodes.start(2)
    healed = time.monotonic()
    before = len(run.resumed())
    step = until(lambda: len(at_work(two_nodes)) == 2 and run.step(), 300, run.end_of_log)
    seconds, start = run.recover(healed, before)
    assert step - start <= EVERY + 2
    note("the cable is plugged in again", "the node joins, and the run grows to it", seconds, step - start)
    report = run.finish()
    assert report["complete"]
    assert read_state(Path(report["checkpoint"])).world_size == 2
    assert_nothing_left(two_nodes)


def test_a_machine_is_taken_away_with_notice(job: Start, two_nodes: Nodes, undisturbed: dict[str, Any], note: Note):
    run = job({"checkpoint.every_steps": 1000})
    two_nodes.start(3)
    step = run.reach(FAULT_AT)
    gone = at_work(two_nodes)[0]
    # What a pod's preStop hook does; SIGTERM follows, and SIGKILL when the time of grace is over.
    notice = [str(Path(sys.executable).parent / "ray"), "drain-node", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
    identity = two_nodes.ask(
        f"print([n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == '{gone.address}'][-1])"
    )
    notice += ["--reason-message=spot", f"--node-id={identity}", "--deadline-remaining-seconds=25"]
    subprocess.run(two_nodes.head.command(notice), env=two_nodes.environment(), check=True, capture_output=True)
    told = time.monotonic()
    saved = until(run.checkpoints, 25, run.end_of_log)[-1]
    in_time = time.monotonic() - told
    assert saved >= step
    assert gone.process is not None
    end(gone.process, signal.SIGTERM)
    try:
        gone.process.wait(5)
    except subprocess.TimeoutExpired:
        gone.kill()  # not after the 25 seconds: the run, which goes on meanwhile, might be at its end by then
    step = run.step()
    seconds, start = run.recover(told)
    assert start >= saved
    assert_undisturbed(run.finish(), undisturbed)
    happened = f"saved {in_time:.0f} s after it, goes on elsewhere, same student"
    note("a node gets notice (SIGTERM)", happened, seconds, step - start)
    assert_nothing_left(two_nodes)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
def test_the_disk_is_full_for_a_while(
    small_disk: Path, two_nodes: Nodes, job: Start, undisturbed: dict[str, Any], note: Note
):
    for number in (1, 2):  # again, since a node sees the disks that were there when it started
        two_nodes.nodes[number].kill()
        two_nodes.start(number)
    two_nodes.wait_for_cpus(2)
    run = job({"checkpoint.storage_path": small_disk / "kept", "checkpoint.every_steps": 10})
    run.reach(12)
    until(lambda: run.checkpoints() and run.checkpoints()[-1] >= 10, 60, run.end_of_log)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            pass
    until(lambda: "could not be saved" in run.said(), 60, run.end_of_log)
    kept = run.checkpoints()
    assert kept, "the last good one stays"
    ballast.unlink()
    report = run.finish()
    assert_undisturbed(report, undisturbed)
    assert run.checkpoints()[-1] == STEPS
    note("the disk is full for a while", "checkpoints are left out and told, same student", None, 0)
    assert_nothing_left(two_nodes)


def test_the_object_store_fails_for_a_while(
    two_nodes: Nodes, job: Start, undisturbed: dict[str, Any], note: Note, tmp_path: Path
):
    machine, fault = two_nodes.machine(9), tmp_path / "fault"
    address, log = f"{machine.address}:5005", tmp_path / "store.log"
    command = machine.command([sys.executable, "-m", "tests.faults.store", machine.address, "5005", str(fault)])
    with log.open("wb") as out:
        store = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        creating = f"""
import time
from pyarrow import fs
for attempt in range(60):
    try:
        fs.S3FileSystem(endpoint_override="http://{address}", allow_bucket_creation=True).create_dir("runs")
        break
    except OSError:
        time.sleep(1)
"""
        subprocess.run(
            two_nodes.head.command([sys.executable, "-c", creating]), env=two_nodes.environment(), check=True
        )
        run = job({"checkpoint.storage_path": f"s3://runs/one?endpoint_override=http://{address}"})
        step = run.reach(FAULT_AT)
        fault.write_text("503")
        time.sleep(10)
        since = killed(at_work(two_nodes)[0], WORKER)  # and then somebody has to read from it
        time.sleep(5)
        fault.unlink()
        seconds, start = run.recover(since)
        assert step - start <= 2 * EVERY + 2, "a checkpoint may have fallen into the time without a store"
        report = run.finish()
        assert_undisturbed(report, undisturbed)
        note(
            "S3 answers 503 for 15 s, a worker dies",
            "asked again until it answers, same student",
            seconds,
            step - start,
        )
    finally:
        end(store)
    assert_nothing_left(two_nodes)


def test_a_shard_is_damaged(job: Start, two_nodes: Nodes, note: Note, tmp_path: Path):
    train = scene_shards(tmp_path, 96, seed=5, side=112)  # of several row groups, of which one will be unreadable
    shard = sorted(train.rglob("*.parquet"))[0]
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    shard.write_bytes(content)
    run = job({"data.train": train, "data.max_rejected_share": 1.0, "optim.steps": 40})
    report = run.finish()
    assert report["complete"]
    assert sum(report["rejected"].values()) > 0
    note("a shard is damaged", f"set aside and counted: {', '.join(report['rejected'])}", None, 0)
    refused = Job(two_nodes, tmp_path / "strict", {**run.settings, "data.max_rejected_share": 0.0})
    refused.start()
    assert refused.process is not None
    assert refused.process.wait(300) == 2, refused.end_of_log()
    assert_nothing_left(two_nodes)


def test_a_batch_gives_nan(job: Start, two_nodes: Nodes, note: Note):
    spoil = Path(two_nodes.variables["SPOIL"])
    spoil.write_text(str(FAULT_AT))
    run = job()
    report = run.finish()
    spoil.unlink()
    assert report["complete"]
    assert report["skipped"] == 1, run.end_of_log()
    assert "update left out: Step 50: " in run.said()
    note("a batch gives NaN", "left out on both workers, and told", None, 0)
    assert_nothing_left(two_nodes)


def test_the_head_dies_and_the_cluster_starts_again(
    job: Start, two_nodes: Nodes, undisturbed: dict[str, Any], note: Note
):
    """As KubeRay's backoffLimit does: a new cluster, and the same command in it."""
    run = job()
    step = run.reach(FAULT_AT)
    for node in two_nodes.nodes.values():
        if node.process is not None and node.process.poll() is None:
            node.kill()
    run.kill()
    since = time.monotonic()
    for number in (0, 1, 2):
        two_nodes.start(number)
    two_nodes.wait_for_cpus(2)
    run.start()
    seconds, start = run.recover(since)
    assert_undisturbed(run.finish(), undisturbed)
    assert step - start <= EVERY + 2
    note("the head and all nodes die", "the same command goes on in a new cluster, same student", seconds, step - start)
    assert_nothing_left(two_nodes)


def test_what_fails_again_and_again_goes_on_as_long_as_it_gets_ahead(job: Start, two_nodes: Nodes, note: Note):
    """More failures than `strategy.max_failures`, with a new checkpoint between each and the next."""
    run = job({"strategy.max_failures": 1})
    for number in range(1, 4):
        before = len(run.resumed())
        run.reach(number * 40 + 5)
        since = killed(at_work(two_nodes)[number % 2], WORKER)
        seconds, _ = run.recover(since, before)
    report = run.finish()
    assert report["complete"]
    happened = "goes on each time, with `strategy.max_failures=1`"
    note("three workers die, one after the other", happened, seconds, "")
    assert_nothing_left(two_nodes)
