"""Any verb as a Ray job: upload the folder, submit, follow the log through broken connections, give the exit code."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.session import environment
from sam3dist.errors import ConfigError, ResourceError

VERBS = ("prepare", "teach", "train", "tune", "evaluate")
ALIASES = {"eval": "evaluate"}
EXCLUDES = (".git", ".venv", "runs", "shards", "**/__pycache__", ".*_cache", "*.egg-info", "build", "dist")
POLL_S = 2.0
LOST_AFTER_S = 300.0
"""A cluster that answers nothing for this long is given up."""
BROKEN = (OSError, RuntimeError, ClientError)
"""What a connection can end with: the errors of `requests` are OSErrors, Ray raises RuntimeError."""
REFUSED = (*BROKEN, ValueError, AuthenticationError)
"""What Ray says no with: ValueError for a folder that is too large or an address that is none."""


def submit(
    verb_args: Sequence[str],
    address: str | None = None,
    *,
    working_dir: str | Path | None = ".",
    env_vars: dict[str, str] | None = None,
    out: TextIO | None = None,
) -> int:
    """The exit code of `python -m cluster.VERB ...` run as a job on the cluster; its log is printed as it grows.

    verb_args: a verb and its words, as on the command line. address: of the cluster's dashboard, http://host:8265;
    None takes RAY_API_SERVER_ADDRESS. working_dir: uploaded (100 MB at most) and where the job runs; None if the
    nodes have the package installed. A job that was stopped gives 143. Ctrl-C leaves the job running and says how to
    stop it. ConfigError for an unknown verb, ResourceError when the cluster cannot be reached.
    """
    client = _connected(address)
    entrypoint = entry(verb_args)
    runtime_env: dict[str, Any] = {"env_vars": env_vars or {}}
    if working_dir is not None:
        runtime_env |= {"working_dir": str(working_dir), "excludes": list(EXCLUDES)}
    try:
        job = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
    except REFUSED as error:
        raise ResourceError(
            f"submit: the cluster did not take the job ({_reason(error)}); "
            "name what need not be uploaded in .rayignore."
        ) from error
    stream = out or sys.stdout
    print(f"{job}: {entrypoint}", file=stream, flush=True)
    try:
        details = _followed(client, job, stream)
    except KeyboardInterrupt:
        print(f"\nleft running; stop it with: ray job stop {job}", file=stream, flush=True)
        return 130
    return exit_code(details)


def entry(verb_args: Sequence[str]) -> str:
    """The shell command of a job, every word quoted: Ray hands it to a shell."""
    verb = ALIASES.get(verb_args[0], verb_args[0]) if verb_args else ""
    if verb not in VERBS:
        raise ConfigError(f"submit {verb or '(nothing)'}: not a job; use one of {', '.join(VERBS)}.")
    return shlex.join(["python", "-m", f"cluster.{verb}", *verb_args[1:]])


def exit_code(details: JobDetails) -> int:
    """The driver's own exit code where Ray knows it; 0 only for a job that succeeded."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return 143
    return details.driver_exit_code or 1


def _connected(address: str | None) -> JobSubmissionClient:
    target = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if target is None:
        raise ConfigError(
            "no cluster to submit to: give run.address=http://HOST:8265, the address of its dashboard, "
            "or set RAY_API_SERVER_ADDRESS."
        )
    try:
        # Ray lets its environment win over an argument; we do not.
        with environment({"RAY_API_SERVER_ADDRESS": target}):
            return JobSubmissionClient(target)
    except REFUSED as error:
        raise ResourceError(
            f"run.address={target}: no job server answers there ({_reason(error)}); give the address of the "
            "dashboard, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as the cluster does."
        ) from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _followed(client: JobSubmissionClient, job: str, out: TextIO) -> JobDetails:
    """The job's details once it has ended, its log printed on the way.

    The log's connection may break at any time, so it is not trusted with the job's end: after a break the whole
    log is asked for and what is new of it printed, and the job's state is asked for until it is final.
    """
    printed = 0
    last_answer = time.monotonic()
    while True:
        try:
            details = client.get_job_info(job)
            if details.status not in (JobStatus.PENDING,) and not details.status.is_terminal():
                printed = asyncio.run(_tail(client, job, out, printed))
            log = client.get_job_logs(job)
            out.write(log[printed:])
            out.flush()
            printed = max(printed, len(log))
            last_answer = time.monotonic()
            if details.status.is_terminal():
                return details
        except BROKEN as error:
            if time.monotonic() - last_answer > LOST_AFTER_S:
                raise ResourceError(f"{job}: the cluster has not answered for {LOST_AFTER_S:g} s ({error}).") from error
        time.sleep(POLL_S)


async def _tail(client: JobSubmissionClient, job: str, out: TextIO, printed: int) -> int:
    """Print the log as it comes, from character `printed` on, until the stream ends or breaks; how far it came."""
    seen = 0
    try:
        async for chunk in client.tail_job_logs(job):
            fresh = chunk[max(0, printed - seen) :]
            seen += len(chunk)
            out.write(fresh)
            out.flush()
            printed = max(printed, seen)
    except BROKEN:
        pass  # what was missed is asked for again
    return printed
