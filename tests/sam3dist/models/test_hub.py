"""Downloads from a hub on this machine that cuts, stalls, refuses and lies."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from sam3dist.errors import CheckpointError
from sam3dist.models.hub import Update, fetch, open_repository
from tests.sam3dist.models.fake_hub import COMMIT, FakeHub, pretend, serving

MODEL = "meta/sam3"
LARGE = bytes(range(256)) * 12_000  # 3 MB
FILES = {"config.json": b'{"model_type": "sam3"}\n', "model.safetensors": LARGE}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """One with MODEL."""
    with serving({MODEL: dict(FILES)}) as hub:
        pretend(hub, monkeypatch, tmp_path)
        yield hub


def quiet(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def fetch_large(folder: Path, update: Update = quiet) -> Path:
    repository = open_repository(MODEL, "main")
    return fetch(repository, repository.files[1], folder, update)


def line_of(folder: Path) -> str:
    """What a person is told when the large file cannot be had."""
    with pytest.raises(CheckpointError) as caught:
        fetch_large(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_repository_is_listed_with_sizes_and_checksums(hub: FakeHub):
    repository = open_repository(MODEL, "main")
    small, large = repository.files
    assert (repository.id, repository.commit) == (MODEL, COMMIT)
    assert (large.name, large.bytes, large.sha256) == (
        "model.safetensors",
        len(LARGE),
        hashlib.sha256(LARGE).hexdigest(),
    )
    assert small.sha256 is None
    assert small.git_sha1 == hashlib.sha1(b"blob 23\0" + FILES["config.json"]).hexdigest()


def test_a_file_is_fetched_once_with_progress(hub: FakeHub, tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    path = fetch_large(tmp_path / "here", lambda *words: told.append(words))
    assert path.read_bytes() == LARGE
    assert told[0][0] == "model.safetensors (MB)"
    assert told[0][1] < told[0][2] == 4  # 3.07 MB
    assert told[-1] == ("verifying model.safetensors (MB)", 4, 4)
    fetched = [done for label, done, _ in told if label == "model.safetensors (MB)"]
    assert fetched == sorted(fetched)
    fetch_large(tmp_path / "here")
    assert len(hub.asked) == 1


def test_a_cut_connection_goes_on_from_where_it_was(hub: FakeHub, tmp_path: Path):
    hub.cuts = [1_000_000, 500_000]
    assert fetch_large(tmp_path).read_bytes() == LARGE
    assert [part for _, part, _ in hub.asked] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_hub_that_is_busy_is_asked_again(hub: FakeHub, tmp_path: Path):
    hub.busy = 2
    assert fetch_large(tmp_path).read_bytes() == LARGE
    assert len(hub.asked) == 3


def test_who_gives_up_says_how_far_it_came_and_goes_on_the_next_time(hub: FakeHub, tmp_path: Path):
    hub.cuts = [2_000_000, 0, 0, 0, 0, 0]
    assert f"model.safetensors: {hub.url} failed 5 times in a row after 2000000 of 3072000 bytes" in line_of(tmp_path)
    hub.asked.clear()
    assert fetch_large(tmp_path).read_bytes() == LARGE
    assert [part for _, part, _ in hub.asked] == ["bytes=2000000-"]


def test_a_hub_that_knows_no_parts_begins_anew(hub: FakeHub, tmp_path: Path):
    hub.cuts, hub.parts = [1_000_000], False
    assert fetch_large(tmp_path).read_bytes() == LARGE


PROGRAM = """
import sys
from pathlib import Path
from sam3dist.models.hub import fetch, open_repository
repository = open_repository("meta/sam3", "main")
fetch(repository, repository.files[1], Path(sys.argv[1]), lambda label, done, total: print(done, flush=True))
"""


def test_a_killed_process_leaves_what_the_next_goes_on_from(hub: FakeHub, tmp_path: Path):
    hub.stalls_after = 2_000_000
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_mine"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "here")], env=environment, stdout=subprocess.PIPE, text=True
    )
    part = tmp_path / "here" / "model.safetensors.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size >= 1_000_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert hub.asked[0][2] == "Bearer hf_mine"
    kept = part.stat().st_size
    hub.stalls_after = None
    hub.let_go.set()
    hub.asked.clear()
    assert fetch_large(tmp_path / "here").read_bytes() == LARGE
    assert [request[1] for request in hub.asked] == [f"bytes={kept}-"]


def test_content_with_another_checksum_than_listed_is_removed(hub: FakeHub, tmp_path: Path):
    hub.lies = {"model.safetensors"}
    assert "meta/sam3: model.safetensors came with SHA-256" in line_of(tmp_path)
    assert not list(tmp_path.rglob("model*"))
    hub.lies = {"config.json"}
    hub.models[MODEL]["config.json"] = b"{}"
    repository = open_repository(MODEL, "main")
    with pytest.raises(CheckpointError, match=r"config\.json came with SHA-256"):
        fetch(repository, repository.files[0], tmp_path, quiet)


@pytest.mark.parametrize("sent", [LARGE + b"x", LARGE[:-1]])
def test_content_of_another_length_than_listed_is_removed(hub: FakeHub, tmp_path: Path, sent: bytes):
    repository = open_repository(MODEL, "main")
    hub.models[MODEL]["model.safetensors"] = sent
    with pytest.raises(CheckpointError, match=f"came with {len(sent)} bytes, not {len(LARGE)}; what came was removed"):
        fetch(repository, repository.files[1], tmp_path, quiet)
    assert len(hub.asked) == 1
    assert not list(tmp_path.rglob("model*"))


def test_a_small_file_is_compared_by_the_hash_of_git(hub: FakeHub, tmp_path: Path):
    repository = open_repository(MODEL, "main")
    hub.models[MODEL]["config.json"] = FILES["config.json"].replace(b"sam3", b"sam4")
    with pytest.raises(CheckpointError, match=r"config\.json came with git hash"):
        fetch(repository, repository.files[0], tmp_path, quiet)


def test_what_the_cache_of_the_hub_has_is_not_fetched_again_if_it_is_whole(hub: FakeHub, tmp_path: Path):
    snapshot = tmp_path / "cache" / "models--meta--sam3" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    cached = snapshot / "model.safetensors"
    cached.write_bytes(LARGE)
    assert fetch_large(tmp_path / "here") == cached
    assert hub.asked == []
    cached.write_bytes(LARGE[:-1] + b"x")
    assert fetch_large(tmp_path / "here").parent == tmp_path / "here"


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_a_gated_model_is_explained_in_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
):
    hub.gated = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert line_of(tmp_path) == (
        f"meta/sam3 is gated: accept its licence on {hub.url}/meta/sam3, then set HF_TOKEN to a token of that account, "
        "or run `hf auth login`."
    )
    assert hub.asked[-1][2] == (f"Bearer {token}" if token else None)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert fetch_large(tmp_path).read_bytes() == LARGE


def test_a_token_is_for_the_hub_and_not_for_whom_it_sends_on_to(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.moved, hub.cuts = True, [1_000_000]
    assert fetch_large(tmp_path).read_bytes() == LARGE
    assert [token for _, _, token in hub.asked] == ["Bearer hf_mine", None] * 2
    assert [part for _, part, _ in hub.asked] == [None, None, "bytes=1000000-", "bytes=1000000-"]


def test_a_model_or_revision_that_is_not_there_is_one_line(hub: FakeHub):
    with pytest.raises(CheckpointError, match=r"^meta/sam4: the hub has no such model, or it is private; check the"):
        open_repository("meta/sam4", "main")
    with pytest.raises(CheckpointError, match=r"^revision=v2: meta/sam3 has no such branch, tag or commit\.$"):
        open_repository(MODEL, "v2")


def test_a_token_that_is_refused_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(CheckpointError, match=r"meta/sam3: .* refuses the token of HF_TOKEN or `hf auth login`; take"):
        open_repository(MODEL, "main")


def test_a_disk_that_fails_is_not_taken_for_the_hub(hub: FakeHub, tmp_path: Path):
    (tmp_path / "model.safetensors.part").mkdir()
    with pytest.raises(IsADirectoryError):
        fetch_large(tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"meta/sam3: http://127\.0\.0\.1:9 does not answer .*try again later"):
        open_repository(MODEL, "main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set; unset it, or give the directory"):
        open_repository(MODEL, "main")
