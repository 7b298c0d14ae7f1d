"""Files of a Hugging Face repository, fetched so that a cut connection or a killed process goes on where it was.

huggingface_hub itself starts a file anew in every process, and compares sizes but no checksums; here the part that has
come stays on disk, and what is there in the end is compared with the checksums that the hub lists.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, httpx

from sam3dist.errors import CheckpointError, first_line

CHUNK = 1 << 20
TRIES = 5
"""Attempts in a row that bring nothing before a download is given up."""
PAUSE_S = 1.0
"""Before another attempt; each that fails in a row waits so much longer."""
TIMEOUT_S = 30.0

Update = Callable[[str, int, int], None]
"""Told what is being done, how much of it, and of how much."""


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it."""

    name: str
    bytes: int
    sha256: str | None
    """Of large files only; the hub knows small ones by the hash that git gives them."""
    git_sha1: str | None


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit."""

    id: str
    commit: str
    files: tuple[HubFile, ...]


def open_repository(hub_id: str, revision: str) -> Repository:
    """What the hub has under an id and a revision; HF_TOKEN opens what is private. CheckpointError, in one line."""
    with explained(hub_id, revision):
        info = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    files = tuple(
        HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in info.siblings or ()
    )
    return Repository(hub_id, str(info.sha), files)


def fetch(repository: Repository, file: HubFile, folder: Path, update: Update) -> Path:
    """Where the file is: in the hub's cache, if it is there already, else in the folder, whole and as the hub lists it.

    CheckpointError where it cannot be had, or has another checksum than it should.
    """
    target = folder / file.name
    if target.is_file():
        return target
    cached = try_to_load_from_cache(repository.id, file.name, revision=repository.commit)
    if isinstance(cached, str) and differs(file, Path(cached), update) is None:
        return Path(cached)
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{file.name}.part")
    with explained(repository.id, repository.commit):
        _download(hf_hub_url(repository.id, file.name, revision=repository.commit), part, file, update)
    wrong = differs(file, part, update)
    if wrong is not None:
        part.unlink()
        raise CheckpointError(
            f"{repository.id}: {file.name} came with {wrong}; what came was removed, so run the same command again."
        )
    return part.rename(target)


def differs(file: HubFile, path: Path, update: Update) -> str | None:
    """What is wrong with the content at a path, or None: "SHA-256 12ab.., not 34cd..", "5 bytes, not 6"."""
    size = path.stat().st_size
    if size != file.bytes:
        return f"{size} bytes, not {file.bytes}"
    # Git hashes a file with its length before it.
    whole = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    listed, done = file.sha256 or file.git_sha1, 0
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            whole.update(chunk)
            done += len(chunk)
            _tell(update, f"verifying {file.name}", done, size)
    found = whole.hexdigest()
    kind = "SHA-256" if file.sha256 else "git hash"
    return None if listed in (None, found) else f"{kind} {found[:12]}, not {str(listed)[:12]}"


def _download(url: str, part: Path, file: HubFile, update: Update) -> None:
    """Append to `part` what is missing of it. Raises the client's errors, and CheckpointError after TRIES."""
    failed = 0
    while True:
        done = part.stat().st_size if part.is_file() else 0
        if done > file.bytes:
            part.unlink()
            done = 0
        if done == file.bytes and part.is_file():
            return
        try:
            _append(url, part, done, file, update)
            return
        except (httpx.TransportError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and not _passing(error):
                raise
            grown = part.is_file() and part.stat().st_size > done
            failed = 0 if grown else failed + 1
            if failed == TRIES:
                raise CheckpointError(
                    f"{file.name}: {constants.ENDPOINT} failed {TRIES} times in a row after {done} of {file.bytes} "
                    f"bytes ({first_line(error)}); the same command again goes on from there."
                ) from error
            time.sleep(PAUSE_S * max(failed, 1))


def _append(url: str, part: Path, done: int, file: HubFile, update: Update) -> None:
    headers: dict[str, Any] = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        if response.status_code != 206:  # the server does not do parts
            done = 0
        with part.open("ab" if done else "wb") as content:
            for chunk in response.iter_bytes():  # as they come: of larger ones a cut would lose the last
                content.write(chunk)
                done += len(chunk)
                _tell(update, file.name, done, file.bytes)


def _tell(update: Update, label: str, done: int, size: int) -> None:
    """In megabytes, of files that take a moment; the last one counts when it is whole."""
    if size >= 10**6:
        update(f"{label} (MB)", done // 10**6 if done < size else -(-size // 10**6), -(-size // 10**6))


def _passing(error: HfHubHTTPError) -> bool:
    """Whether it may work in a moment: the hub is busy or broken."""
    return error.response.status_code == 429 or error.response.status_code >= 500


@contextmanager
def explained(hub_id: str, revision: str) -> Iterator[None]:
    """Inside, what the client raises becomes a CheckpointError of one line with the way out."""
    try:
        yield
    except CheckpointError:
        raise
    except GatedRepoError as error:
        raise CheckpointError(gated(hub_id)) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}: the hub has no such model, or it is private; check the name, or set HF_TOKEN to a token that "
            "may read it."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"revision={revision}: {hub_id} has no such branch, tag or commit.") from error
    except OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{hub_id}: HF_HUB_OFFLINE is set; unset it, or give the directory of a copy on this machine."
        ) from error
    except Exception as error:  # the client raises errors of several libraries
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            raise CheckpointError(
                f"{hub_id}: {constants.ENDPOINT} refuses the token of HF_TOKEN or `hf auth login`; take one that may "
                "read this model, or none."
            ) from error
        if isinstance(error, OSError) and status is None:  # a disk of this machine
            raise
        raise CheckpointError(
            f"{hub_id}: {constants.ENDPOINT} does not answer as it should ({first_line(error)}); try again later, or "
            "copy the model to this machine and give its directory."
        ) from error


def gated(hub_id: str) -> str:
    """What to do about a model whose licence has to be accepted first."""
    return (
        f"{hub_id} is gated: accept its licence on {constants.ENDPOINT}/{hub_id}, then set HF_TOKEN to a token of that "
        "account, or run `hf auth login`."
    )
