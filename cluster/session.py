"""A Ray cluster for the length of one job: joined where there is one, started here where there is none."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from sam3dist.errors import ConfigError, ResourceError, Sam3DistError

if TYPE_CHECKING:
    from sam3dist.config.distill import RunConfig

# Only references to rows and small messages pass through the object store, pixels never do (see streams.py).
OBJECT_STORE_BYTES = 256 * 1024**2
# Ray puts it into the environment of the driver of a submitted job.
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
HOST_AND_PORT = re.compile(r"[^/]+:\d+")
ANSWER_S = 5.0
"""Ray asks for minutes where nobody answers, and says so in warnings of its own."""


@dataclass(frozen=True)
class Session:
    """The cluster this process is connected to."""

    address: str  # host:port of its control service
    started_here: bool


@contextmanager
def session(run: RunConfig, elastic: bool = False) -> Iterator[Session]:
    """The connected cluster; left, or shut down if it was started here, on the way out.

    Inside `ray job submit` it is the job's cluster, whatever `run.address` says; else the one of `run.address`, of
    RAY_ADDRESS, or, with neither, a private one on this machine with `run.num_cpus` logical CPUs, which may exceed
    the machine's. A private one asks for a token and keeps its logs only if the job fails, and prints where; a
    cluster that asks for one is joined with RAY_AUTH_MODE=token. A process that is connected already, such as a
    worker, stays so. elastic: its runs may begin with fewer workers than they ask for, and wait less for all.
    """
    if ray.is_initialized():
        yield Session(ray.get_runtime_context().gcs_address, started_here=False)
        return
    named, address = "run.address", run.address
    if JOB_CONFIG in os.environ or not address:
        named, address = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS")
    variables = job_variables(elastic)
    joins = address and address != "local"
    with _joined(named, str(address), variables) if joins else _started(run.num_cpus, variables) as connected:
        yield connected


@contextmanager
def _joined(named: str, address: str, variables: dict[str, str]) -> Iterator[Session]:
    _require_answer(named, address)
    if HOST_AND_PORT.fullmatch(address):
        variables["RAY_ADDRESS"] = address  # see _started
    with environment(variables):
        try:
            ray.init(
                address=address,
                runtime_env={"env_vars": _without_those_of_the_job(variables)},
                **_quiet(),
            )
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise _no_answer(named, address, error) from error
        try:
            yield Session(ray.get_runtime_context().gcs_address, started_here=False)
        finally:
            ray.shutdown()


def _require_answer(named: str, address: str) -> None:
    """Raise ConfigError for an address of another kind than Ray joins, ResourceError where nobody answers."""
    if HOST_AND_PORT.fullmatch(address):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        except (OSError, OverflowError, UnicodeError) as error:  # the last two: no such port, no such name
            raise _no_answer(named, address, error) from error
    elif address != "auto" and not address.startswith("ray://"):
        raise ConfigError(
            f"{named}={address}: a cluster is joined as HOST:6379, the address of `ray start --head`; only submit "
            "takes http://HOST:8265, the dashboard."
        )


def _no_answer(named: str, address: str, error: BaseException) -> ResourceError:
    reason = " ".join(str(error).split())[:120]
    return ResourceError(
        f"{named}={address}: no cluster answers there ({reason}); start one with `ray start --head`, set "
        f"RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as the cluster does, or leave {named} out."
    )


@contextmanager
def _started(num_cpus: float | None, variables: dict[str, str]) -> Iterator[Session]:
    # Short, because Ray puts unix sockets below it, whose paths may have 107 bytes only.
    temp_dir = Path(tempfile.mkdtemp(prefix="s3d-", dir="/tmp"))
    port = _free_port()
    # Every process of the cluster is a child of this one and inherits these. The address matters on a machine that
    # runs a second cluster: whoever then looks for "the" cluster fails, and stopped trials would keep their CPUs.
    inherited = {
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away
    }
    _have_token()
    failed = False
    with environment(variables | inherited):
        try:
            ray.init(
                address="local",
                num_cpus=math.ceil(num_cpus or os.cpu_count() or 1),
                include_dashboard=True,  # stopped trials give their CPUs back through its State API
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(temp_dir),
                **_quiet(),
            )
            yield Session(ray.get_runtime_context().gcs_address, started_here=True)
        except Exception as error:
            failed = not isinstance(error, Sam3DistError)  # a person's mistake needs no logs
            raise
        finally:
            ray.shutdown()
            if failed:
                print(f"Ray's logs: {temp_dir}/session_latest/logs", file=sys.stderr)
            else:
                shutil.rmtree(temp_dir, ignore_errors=True)


def _have_token() -> None:
    """Set RAY_AUTH_TOKEN to a random one unless the person has a token: Ray would write its own to a file.

    Ray's control port listens on every interface, whatever address it is given, so a cluster that is started without
    RAY_AUTH_MODE asks for a token. It stays in the environment: Ray reads it but once in a process.
    """
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not named and not Path("~/.ray/auth_token").expanduser().is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """These environment variables inside, those of before outside."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def job_variables(elastic: bool = False) -> dict[str, str]:
    """What every process of a job finds in its environment; a person's own settings win."""
    variables = {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_DATA_LOG_LEVEL": "ERROR",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line of a worker twice
        # Nodes that scale from zero and machines under load need longer than Ray's 60 seconds. An elastic run whose
        # node has just died waits so long for as many workers as before, and goes on with fewer only then.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60" if elastic else "300",
        "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new tables come even when they are turned off
        # The loggers of Tune would write what is in history.jsonl and report.json already.
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    return {key: os.environ.get(key, value) for key, value in variables.items()}


def _without_those_of_the_job(variables: dict[str, str]) -> dict[str, str]:
    """The variables that the job left open: Ray refuses one that both the job and its driver set."""
    job = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env") or {}
    return {key: value for key, value in variables.items() if key not in job.get("env_vars", {})}


def _quiet() -> dict[str, Any]:
    """Arguments of ray.init: the workers' own lines come through, Ray's chatter does not."""
    return {"logging_level": logging.ERROR, "log_to_driver": True}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
