"""Joining a cluster and starting one: their addresses, and their tokens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.session import JOB_CONFIG, _have_token, session
from sam3dist.config.distill import RunConfig
from sam3dist.errors import ConfigError, ResourceError
from tests.cluster.conftest import ray_head

JOIN = """
import sys
import ray
from cluster.session import session
from sam3dist.config.distill import RunConfig

@ray.remote
def total(numbers):
    return sum(ray.get(numbers))  # asks this process, which owns them

with session(RunConfig(address=sys.argv[1])):
    print(ray.get(total.remote([ray.put(3), ray.put(4)]), timeout=60))
"""
START = """
import grpc
from cluster.session import session
from sam3dist.config.distill import RunConfig

with session(RunConfig(num_cpus=1)) as started, grpc.insecure_channel(started.address) as channel:
    try:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=30)
        print("open")
    except grpc.RpcError as error:
        print(error.code().name)
"""


@pytest.fixture(autouse=True)
def _outside_of_any_cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(JOB_CONFIG, raising=False)


def refusal(kind: type[Exception], address: str | None) -> str:
    started = time.monotonic()
    with pytest.raises(kind) as caught, session(RunConfig(address=address)):
        pass
    assert time.monotonic() - started < 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nobody_at_the_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refusal(ResourceError, address)
        assert said.startswith(f"run.address={address}: no cluster answers there")
        assert "ray start --head" in said
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert refusal(ResourceError, None) == said.replace("run.address", "RAY_ADDRESS")


@pytest.mark.parametrize("address", ["no.such.host.invalid:6379", "127.0.0.1:70000", "a..b:6379", "[::1]:9"])
def test_a_host_or_port_that_cannot_be_is_no_cluster(address: str):
    assert refusal(ResourceError, address).startswith(f"run.address={address}: no cluster answers there")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head", "localhost", "head/6379"])
def test_an_address_of_another_kind_is_told_what_it_must_be(address: str, monkeypatch: pytest.MonkeyPatch):
    said = refusal(ConfigError, address)
    assert said.startswith(f"run.address={address}: ")
    assert "HOST:6379" in said
    assert "only submit takes http://HOST:8265" in said
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert refusal(ConfigError, None) == said.replace("run.address", "RAY_ADDRESS")


def test_a_cluster_of_our_own_has_a_random_token_unless_the_person_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    _have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "theirs"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    _have_token()
    ours = os.environ.pop("RAY_AUTH_TOKEN")
    assert len(ours) == 64
    _have_token()
    assert os.environ.pop("RAY_AUTH_TOKEN") != ours
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    _have_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


def said_by(program: str, *words: str, home: Path) -> str:
    """The last line that a fresh Python prints in which nobody has said anything about Ray."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**clean, "HOME": str(home)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_cluster_without_a_token_is_joined_by_its_address(tmp_path: Path):
    with ray_head(RAY_AUTH_MODE="disabled") as running:
        assert said_by(JOIN, running.address, home=tmp_path) == "7"


@pytest.mark.slow
def test_a_cluster_of_our_own_asks_for_a_token_that_no_file_holds(tmp_path: Path):
    assert said_by(START, home=tmp_path) == "UNAUTHENTICATED"
    assert not (tmp_path / ".ray").exists()
