"""Where the checkpoints of a run are kept: a directory that all its workers see, or a prefix of an object store.

    step-00000400/    a checkpoint, with files.json: what is in it, in bytes and CRC-32
    manifest.json     which checkpoints there are, the latest, and the best

A checkpoint is written under another name (on a disk) or unnamed (in an object store), with the sums of its files, and
counts from the moment in which the manifest, replaced in one piece, names it. What the manifest does not name was cut
short by a crash: nobody reads it, and the next checkpoint clears it away. Whoever goes on compares the sums.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pyarrow import ArrowException, fs

from sam3dist.errors import CheckpointError, ConfigError, first_line

MANIFEST, FILES = "manifest.json", "files.json"
TRAINING, STUDENT = "training", "student"
"""Folders of a checkpoint: what only training on needs, and what is used."""
BLOCK = 4 * 1024**2
ATTEMPTS = 8
"""Times that a request to an object store is made, at growing distances: about half a minute in all."""
CONNECT_S, REQUEST_S = 5.0, 30.0


@dataclass(frozen=True)
class Entry:
    """A checkpoint that the manifest names."""

    name: str
    step: int
    score: float | None = None
    """Of the evaluation at this very step; None without one."""


class CheckpointFolder:
    """The checkpoints at a location. Several processes may read and add files; one at a time may `publish`.

    Errors of the disk or the store are OSErrors.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self.remote = "://" in self.location
        self.filesystem, self.root = _opened(self.location) if self.remote else (fs.LocalFileSystem(), self.location)

    def begin(self, name: str, scratch: Path | None = None) -> Path:
        """An empty local directory for files of a new checkpoint: on a disk the one of all ranks, else `scratch`.

        One rank calls it first and alone, since what a crash left there is deleted.
        """
        directory = self.begun(name, scratch)
        shutil.rmtree(directory, ignore_errors=True)
        if self.remote:
            self._delete(name)
        directory.mkdir(parents=True)
        return directory

    def begun(self, name: str, scratch: Path | None = None) -> Path:
        """The directory of `begin`, for the ranks that did not call it."""
        if not self.remote:
            return Path(self.root) / f".{name}.partial"
        assert scratch is not None, "an object store needs a directory to write from"
        return scratch / name

    def add(self, name: str, directory: Path, files: Sequence[Path], part: int) -> None:
        """Store these files of `directory` safely as part number `part` of a new checkpoint, and note their sums."""
        sums = {}
        for file in files:
            relative = file.relative_to(directory).as_posix()
            sums[relative] = _sum_of(file)
            if self.remote:
                target = f"{self.root}/{name}/{relative}"
                fs.copy_files(str(file), target, fs.LocalFileSystem(), self.filesystem, chunk_size=BLOCK)
                found = self.filesystem.get_file_info(target).size
                if found != sums[relative][0]:
                    raise OSError(f"{target}: {found} bytes arrived of {sums[relative][0]}")
            else:
                _flush(file)
        self.put(f"{self._open_name(name)}/{_part(part)}", json.dumps(sums).encode())

    def publish(self, entry: Entry, parts: int, keep: int) -> None:
        """Enter a checkpoint of so many parts into the manifest; of those before, the `keep` newest and the best stay.

        CheckpointError where a part is missing: a rank wrote to a disk that this one does not see.
        """
        opened = self._open_name(entry.name)
        files: dict[str, list[int]] = {}
        for part in range(parts):
            try:
                files |= json.loads(self._read(f"{opened}/{_part(part)}"))
            except FileNotFoundError:
                raise CheckpointError(
                    f"{self.location}: worker {part} has written its part of {entry.name} elsewhere; name a "
                    "checkpoint.storage_path that all nodes share, such as s3://BUCKET/RUNS."
                ) from None
        self.put(f"{opened}/{FILES}", json.dumps(files).encode())
        for part in range(parts):
            self.filesystem.delete_file(f"{self.root}/{opened}/{_part(part)}")
        if not self.remote:
            final = Path(self.root) / entry.name
            shutil.rmtree(final, ignore_errors=True)  # the run was resumed from an earlier one
            os.rename(Path(self.root) / opened, final)
        # Later ones were left behind by a run that was resumed from an earlier checkpoint than its last.
        known = [other for other in self.entries() if other.step < entry.step] + [entry]
        kept = _kept(known, keep)
        self._write_manifest(kept)
        self._clear({other.name for other in kept})

    def entries(self) -> list[Entry]:
        """What the manifest names, the oldest first; nothing without one. CheckpointError if it is unreadable."""
        try:
            content = json.loads(self._read(MANIFEST))
            return [Entry(**entry) for entry in content["checkpoints"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.location}/{MANIFEST}: unreadable ({error}); choose another run.dir, or delete it to start anew."
            ) from error

    def path(self, name: str) -> str:
        """Where this checkpoint is, for people and reports."""
        return f"{self.location.partition('?')[0].rstrip('/')}/{name}"

    def checked(self, name: str, scratch: Path | None = None) -> Path:
        """A checkpoint on this machine, the same as was written byte by byte; CheckpointError if it is not.

        That of an object store is copied into `scratch`.
        """
        if not self.remote:
            require_sums(Path(self.root) / name)
            return Path(self.root) / name
        assert scratch is not None, "an object store needs a directory to read into"
        return self.fetch(name, scratch / name)

    def fetch(self, name: str, directory: Path, folders: Sequence[str] | None = None) -> Path:
        """Copy a checkpoint here, or of it what is in these folders and in none. Raises CheckpointError."""
        try:
            files = json.loads(self._read(f"{name}/{FILES}"))
            wanted = [file for file in files if folders is None or "/" not in file or file.split("/")[0] in folders]
            for file in (FILES, *wanted):
                (directory / file).parent.mkdir(parents=True, exist_ok=True)
                source = f"{self.root}/{name}/{file}"
                fs.copy_files(source, str(directory / file), self.filesystem, fs.LocalFileSystem(), chunk_size=BLOCK)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path(name)}: cannot be fetched ({first_line(error)}).") from error
        require_sums(directory, wanted)
        return directory

    def put(self, name: str, content: bytes) -> None:
        """Write a small file, all of it or nothing: an object appears when it is complete, a file by renaming."""
        if self.remote:
            with self.filesystem.open_output_stream(f"{self.root}/{name}") as stream:
                stream.write(content)
            return
        path = Path(self.root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)

    def get(self, name: str) -> bytes | None:
        """A file beside the checkpoints, or None where there is none."""
        try:
            return self._read(name)
        except FileNotFoundError:
            return None

    def drop(self, name: str, folder: str) -> None:
        """Delete a folder of a checkpoint that is not needed any more, as far as that can be done."""
        self._delete(f"{name}/{folder}")

    def clear(self) -> None:
        """Delete what the manifest does not name any more, or never did; nobody may be writing a checkpoint.

        What cannot be deleted now is tried again next time.
        """
        self._clear({entry.name for entry in self.entries()})

    def _clear(self, kept: set[str]) -> None:
        for info in self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True)):
            name = info.base_name
            ours = name.startswith("step-") or (name.startswith(".step-") and name.endswith(".partial"))
            if ours and name not in kept and info.type == fs.FileType.Directory:
                self._delete(name)

    def discard(self, name: str, scratch: Path | None = None) -> None:
        """Delete what there is of a checkpoint that came to nothing, as far as that can be done."""
        shutil.rmtree(self.begun(name, scratch), ignore_errors=True)

    def _open_name(self, name: str) -> str:
        return name if self.remote else f".{name}.partial"

    def _write_manifest(self, entries: Sequence[Entry]) -> None:
        best = _best(entries)
        content = {
            "latest": entries[-1].name,
            "best": best and best.name,
            "checkpoints": [asdict(entry) for entry in entries],
        }
        self.put(MANIFEST, json.dumps(content, indent=1).encode())

    def _delete(self, name: str) -> None:
        try:
            self.filesystem.delete_dir(f"{self.root}/{name}")
        except OSError:  # not there, or the store does not answer
            return

    def _read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream:
            return bytes(stream.read())


def below(location: str, *names: str) -> str:
    """The directory or prefix of these names in one, whose URL may end in a query."""
    place, mark, query = location.partition("?") if "://" in location else (location, "", "")
    return "/".join([place.rstrip("/"), *names]) + mark + query


def _opened(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URL, and the path in it. S3 is asked again where it does not answer."""
    parts = urlsplit(location)
    try:
        if parts.scheme != "s3":
            return fs.FileSystem.from_uri(location)
        named: dict[str, Any] = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        endpoint = named.pop("endpoint_override", None) or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            named["endpoint_override"] = endpoint
        store = fs.S3FileSystem(
            **named,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            connect_timeout=CONNECT_S,
            request_timeout=REQUEST_S,
        )
        return store, f"{parts.netloc}{parts.path}".rstrip("/")
    except (ArrowException, OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"checkpoint.storage_path={location}: no such store ({first_line(error)}); write "
            "s3://BUCKET/PREFIX, with ?endpoint_override=http://HOST:PORT for one that is not Amazon's."
        ) from error


def _kept(known: Sequence[Entry], keep: int) -> list[Entry]:
    """The `keep` newest and the best, in their order."""
    best = _best(known)
    return [entry for place, entry in enumerate(known) if place >= len(known) - keep or entry == best]


def _best(entries: Sequence[Entry]) -> Entry | None:
    measured = [entry for entry in entries if entry.score is not None]
    return max(measured, key=lambda entry: (entry.score or 0.0, -entry.step), default=None)


def _part(part: int) -> str:
    return f"part-{part}.json"


def require_sums(directory: Path, wanted: Sequence[str] | None = None) -> None:
    """Raise CheckpointError unless the files of a checkpoint, or these of them, are as they were written."""
    try:
        files = json.loads((directory / FILES).read_text(encoding="utf-8"))
        for file in files if wanted is None else wanted:
            found = _sum_of(directory / file)
            if found != files[file]:
                raise CheckpointError(f"{directory / file}: damaged: {found[0]} bytes, {files[file][0]} were written.")
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory}: incomplete ({first_line(error)}).") from error


def _sum_of(path: Path) -> list[int]:
    """[bytes, CRC-32] of a file, as it is read."""
    size = crc = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _flush(path: Path) -> None:
    """Return once the disk has the file, or the directory's list of files."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
