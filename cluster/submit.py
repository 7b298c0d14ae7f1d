"""Any verb as a Ray job: upload the folder, submit, follow the log through broken connections, give the exit code."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.follow import Log
from cluster.session import environment
from cluster.upload import megabytes, pack, require_uploaded, survey
from sam3dist.config.submission import SubmitSettings
from sam3dist.errors import ConfigError, ResourceError

VERBS = ("prepare", "teach", "train", "tune", "evaluate")
ALIASES = {"eval": "evaluate"}
GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by the process that Ray puts beside each driver, which has the environment of its job."""
RESERVED = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
"""What Ray calls a driver's resources of its own."""
REFUSED = (OSError, RuntimeError, ClientError, ValueError, AuthenticationError)
"""What Ray says no with: the errors of `requests` are OSErrors, and a ValueError is an address that is none."""


def submit(
    verb_args: Sequence[str],
    address: str | None = None,
    settings: SubmitSettings | None = None,
    *,
    out: TextIO | None = None,
) -> int:
    """The exit code of `python -m cluster.VERB ...` run as a job on the cluster; its log is printed as it grows.

    verb_args: a verb and its words, as on the command line. address: of the cluster's dashboard, http://host:8265;
    None takes RAY_API_SERVER_ADDRESS. A job that was stopped gives 143. Ctrl-C gives 130, whether it leaves the job
    running or stops it (`on_interrupt`), and SIGTERM 143. ConfigError for an unknown verb, a folder with too much in
    it, or words that name what is not uploaded; ResourceError when the cluster refuses or cannot be reached.
    """
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # it tells of the upload, as we do
    settings = settings or SubmitSettings()
    stream = out or sys.stdout
    entrypoint = entry(verb_args)
    client = _connected(address)
    with tempfile.TemporaryDirectory() as scratch:
        working_dir = _packed(settings.working_dir, Path(scratch) / "folder.zip", verb_args[1:], stream)
        job = _taken(client, entrypoint, working_dir, settings, labels(verb_args))
    print(f"{job}: {entrypoint}", file=stream, flush=True)
    if not settings.follow:
        return 0
    return _watched(Log(client, job, stream), settings.on_interrupt)


def _watched(log: Log, on_interrupt: str) -> int:
    """The exit code, once the job has ended or somebody has interrupted."""
    try:
        with _sigterm_interrupts():
            return exit_code(log.followed())
    except KeyboardInterrupt as interrupt:
        code = 128 + (signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT)
    if on_interrupt == "leave":
        print(f"\n{log.job}: left running; stop it with: ray job stop {log.job}", file=log.out, flush=True)
        return code
    print(f"\n{log.job}: stopping; Ctrl-C again leaves it to itself", file=log.out, flush=True)
    try:
        with _sigterm_interrupts():
            status = log.followed(stop=True).status
        ended = "has not begun; Ray ends it when it does" if status == JobStatus.PENDING else status.value.lower()
        print(f"{log.job}: {ended}", file=log.out, flush=True)
    except KeyboardInterrupt:
        print(f"\n{log.job}: not followed any longer", file=log.out, flush=True)
    return code


def entry(verb_args: Sequence[str]) -> str:
    """The shell command of a job, every word quoted: Ray hands it to a shell."""
    verb = ALIASES.get(verb_args[0], verb_args[0]) if verb_args else ""
    if verb not in VERBS:
        raise ConfigError(f"submit {verb or '(nothing)'}: not a job; use one of {', '.join(VERBS)}.")
    return shlex.join(["python", "-m", f"cluster.{verb}", *verb_args[1:]])


def labels(verb_args: Sequence[str]) -> dict[str, str]:
    """What the dashboard shows of a job: its verb, and its run by the directory, the name or the first argument."""
    given = dict(word.split("=", 1) for word in verb_args[1:] if "=" in word)
    arguments = [Path(word).stem for word in verb_args[1:] if "=" not in word]
    run = given.get("run.dir") or given.get("name") or next(iter(arguments), "")
    return {"verb": verb_args[0], "run": run}


def exit_code(details: JobDetails) -> int:
    """The driver's own exit code where Ray knows it, of one killed by a signal 128 and its number; 0 only for a job
    that succeeded, 143 for one that was stopped."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return 128 + signal.SIGTERM
    code = details.driver_exit_code or 1
    return code if code > 0 else 128 - code


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


def _packed(working_dir: str | None, package: Path, words: Sequence[str], out: TextIO) -> str | None:
    """What Ray is to upload; says what that is."""
    if working_dir is None or "://" in working_dir:
        return working_dir
    upload = survey(Path(working_dir))
    require_uploaded(upload, words)
    pack(upload, package)
    print(f"uploading {len(upload.sizes):,} files, {megabytes(upload.bytes)}", file=out, flush=True)
    for path, kind in upload.left_out.items():
        print(f"not uploading {path} ({kind})", file=out, flush=True)
    return str(package)


def _taken(
    client: JobSubmissionClient,
    entrypoint: str,
    working_dir: str | None,
    settings: SubmitSettings,
    metadata: dict[str, str],
) -> str:
    """The id of the job that the cluster has taken."""
    runtime_env: dict[str, Any] = {"env_vars": {GRACE: str(settings.grace_s), **settings.env}}
    if working_dir is not None:
        runtime_env["working_dir"] = working_dir
    reserved: dict[str, Any] = {
        RESERVED[name]: amount for name, amount in settings.resources.items() if name in RESERVED
    }
    if "memory" in settings.resources:
        reserved["entrypoint_memory"] = int(settings.resources["memory"])  # bytes
    own = {name: amount for name, amount in settings.resources.items() if name not in RESERVED}
    try:
        return client.submit_job(
            entrypoint=entrypoint,
            runtime_env=runtime_env,
            metadata={**metadata, **settings.metadata},
            submission_id=settings.id,
            entrypoint_resources=own or None,
            **reserved,
        )
    except REFUSED as error:
        if "already exists" in str(error):
            raise ConfigError(
                f"submit.id={settings.id}: the cluster has had this job; follow it with `ray job logs -f "
                f"{settings.id}`, or choose another id."
            ) from error
        raise ResourceError(f"submit: the cluster did not take the job ({_reason(error)}).") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


class _Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C is."""


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM interrupts as Ctrl-C does, where signals are handled: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
