"""Addresses that no cluster answers at, told in one line before Ray is asked."""

from __future__ import annotations

import socket
import time

import pytest

from cluster.session import JOB_CONFIG, session
from sam3dist.config.distill import RunConfig
from sam3dist.errors import ConfigError, ResourceError


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
