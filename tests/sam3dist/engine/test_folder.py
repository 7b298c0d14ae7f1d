"""Checkpoints on a disk and in an object store: whole or not there, the newest and the best."""

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from pyarrow import fs

from sam3dist.engine.folder import CheckpointFolder, Entry, below
from sam3dist.errors import CheckpointError, ConfigError
from tests.object_store import object_store, set_keys


@pytest.fixture(params=["disk", "object store"])
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "kept")
        return
    set_keys(monkeypatch)
    with object_store() as store:
        yield store.url(f"{tmp_path.name}/run")  # servers of one process share their objects


def save(folder: CheckpointFolder, step: int, scratch: Path, score: float | None = None, keep: int = 2) -> str:
    """A checkpoint by two ranks."""
    name = f"step-{step:08d}"
    directory = folder.begin(name, scratch)
    for rank in range(2):
        file = directory / "training" / f"part-{rank}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(random.Random(step + rank).randbytes(5_000_000 * rank + 10))
        (directory / f"state-{rank}").write_text(f"{step}")
        folder.add(name, directory, [file, directory / f"state-{rank}"], rank)
    folder.publish(Entry(name, step, score), parts=2, keep=keep)
    return name


def names(folder: CheckpointFolder) -> list[int]:
    return [entry.step for entry in folder.entries()]


def test_what_was_saved_is_read_back_by_another_process(location: str, tmp_path: Path):
    name = save(CheckpointFolder(location), 3, tmp_path / "written", score=0.5)
    found = CheckpointFolder(location)
    assert found.entries() == [Entry(name, 3, 0.5)]
    directory = found.checked(name, tmp_path / "read")
    assert (directory / "training" / "part-1").read_bytes() == random.Random(4).randbytes(5_000_010)
    assert (directory / "state-0").read_text() == "3"
    files = {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()}
    assert files == {"files.json", "training/part-0", "training/part-1", "state-0", "state-1"}


def test_a_part_of_it_can_be_fetched(location: str, tmp_path: Path):
    folder = CheckpointFolder(location)
    name = save(folder, 3, tmp_path / "written")
    assert sorted(file.name for file in folder.fetch(name, tmp_path / "top", ()).iterdir()) == [
        "files.json",
        "state-0",
        "state-1",
    ]
    folder.drop(name, "training")
    assert (folder.fetch(name, tmp_path / "again", ()) / "state-0").read_text() == "3"
    with pytest.raises(CheckpointError, match=rf"{name}.*(incomplete|cannot be fetched)"):
        folder.checked(name, tmp_path / "read")


def test_the_newest_and_the_best_stay(location: str, tmp_path: Path):
    folder = CheckpointFolder(location)
    assert names(folder) == []
    for step, score in ((2, 0.1), (4, 0.9), (6, None), (8, 0.3), (10, 0.3)):
        save(folder, step, tmp_path / "scratch", score)
    assert names(folder) == [4, 8, 10]
    assert folder.checked("step-00000004", tmp_path / "read").is_dir()
    with pytest.raises(CheckpointError):
        folder.checked("step-00000002", tmp_path / "read")
    save(folder, 12, tmp_path / "scratch", 0.95)
    assert names(folder) == [10, 12]


def test_a_run_that_goes_back_replaces_what_came_after(location: str, tmp_path: Path):
    folder = CheckpointFolder(location)
    for step in (2, 4, 6):
        save(folder, step, tmp_path / "scratch", keep=3)
    save(folder, 4, tmp_path / "scratch", keep=3)
    assert names(folder) == [2, 4]


def test_what_was_cut_short_is_not_seen_and_is_cleared_away(location: str, tmp_path: Path):
    folder = CheckpointFolder(location)
    save(folder, 2, tmp_path / "scratch")
    directory = folder.begin("step-00000004", tmp_path / "scratch")
    (directory / "half").write_text("half")
    folder.add("step-00000004", directory, [directory / "half"], 0)
    again = CheckpointFolder(location)
    assert names(again) == [2]
    save(again, 6, tmp_path / "other")
    assert names(again) == [2, 6]
    listed = again.filesystem.get_file_info(fs.FileSelector(again.root))
    assert sorted(info.base_name for info in listed) == ["manifest.json", "step-00000002", "step-00000006"]


def test_a_part_that_is_missing_is_a_disk_that_is_not_shared(location: str, tmp_path: Path):
    folder = CheckpointFolder(location)
    directory = folder.begin("step-00000004", tmp_path / "scratch")
    (directory / "file").write_text("x")
    folder.add("step-00000004", directory, [directory / "file"], 0)
    with pytest.raises(CheckpointError, match=r"worker 1 has written its part .* checkpoint.storage_path that all"):
        folder.publish(Entry("step-00000004", 4), parts=2, keep=1)
    assert names(folder) == []


def test_damage_is_found(location: str, tmp_path: Path):
    folder = CheckpointFolder(location)
    name = save(folder, 2, tmp_path / "scratch")
    with folder.filesystem.open_output_stream(f"{folder.root}/{name}/training/part-0") as stream:
        stream.write(b"0123456789")
    with pytest.raises(CheckpointError, match=r"training/part-0: damaged: 10 bytes, 10 were written"):
        folder.checked(name, tmp_path / "read")


def test_a_manifest_that_is_none_says_what_to_do(tmp_path: Path):
    (tmp_path / "manifest.json").write_text('{"checkpoints": [{"na')
    with pytest.raises(CheckpointError, match=r"manifest.json: unreadable .*choose another run.dir"):
        CheckpointFolder(tmp_path).entries()


def test_a_store_of_another_kind_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"checkpoint.storage_path=floppy://a: no such store"):
        CheckpointFolder("floppy://a")


def test_places_below_a_location_keep_its_query():
    assert below("s3://b/runs/?endpoint_override=http://h:1", "trials", "3") == (
        "s3://b/runs/trials/3?endpoint_override=http://h:1"
    )
    assert below("/data/what?", "trials") == "/data/what?/trials"


def save_for_ever(location: str, step: int, ready: Connection) -> None:
    folder = CheckpointFolder(location)
    ready.send(None)
    while True:
        name = f"step-{step:08d}"
        directory = folder.begin(name)
        (directory / "training").mkdir()
        files = [directory / "training" / str(number) for number in range(2)]
        for file in files:
            file.write_bytes(bytes([step % 251]) * 400_000)
        folder.add(name, directory, files, 0)
        folder.publish(Entry(name, step), parts=1, keep=1)
        step += 1


@pytest.mark.slow
def test_200_kills_at_random_moments_never_leave_an_unreadable_newest_checkpoint(tmp_path: Path):
    """The writer does nothing but save, one checkpoint after the other, each replacing the one before."""
    rng, folder, step = random.Random(0), CheckpointFolder(tmp_path / "kept"), 1
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    cut_short = 0
    for _ in range(200):
        ready, told = processes.Pipe(duplex=False)
        writer = processes.Process(target=save_for_ever, args=(folder.location, step, told))
        writer.start()
        ready.recv()
        time.sleep(rng.uniform(0, 0.2))
        writer.kill()
        writer.join(10)
        assert writer.exitcode == -signal.SIGKILL
        cut_short += bool(list(Path(folder.root).glob(".*")))
        for entry in folder.entries()[-1:]:
            newest = folder.checked(entry.name)
            assert {(newest / "training" / str(number)).read_bytes()[0] for number in range(2)} == {entry.step % 251}
            assert entry.step >= step - 1, "no checkpoint that was there is lost"
            step = entry.step + 1
    assert step > 100, "they came to save something"
    assert cut_short > 100, "and most were killed in the middle of it"


def test_manifest_is_plain_for_people(tmp_path: Path):
    folder = CheckpointFolder(tmp_path / "kept")
    save(folder, 2, tmp_path, 0.5)
    save(folder, 4, tmp_path, 0.4)
    content = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert (content["latest"], content["best"]) == ("step-00000004", "step-00000002")
