"""A local S3 server (moto) with a bucket, and a way to make it fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "runs"


@dataclass(frozen=True)
class ObjectStore:
    endpoint: str

    def url(self, prefix: str) -> str:
        """A location in its bucket as `checkpoint.storage_path` takes it."""
        return f"s3://{BUCKET}/{prefix}?endpoint_override={self.endpoint}"

    def files(self, prefix: str) -> list[str]:
        """The objects below a prefix, without it."""
        found = self.filesystem().get_file_info(
            fs.FileSelector(f"{BUCKET}/{prefix}", allow_not_found=True, recursive=True)
        )
        return sorted(info.path.removeprefix(f"{BUCKET}/{prefix}/") for info in found if info.type == fs.FileType.File)

    def filesystem(self) -> fs.S3FileSystem:
        return fs.S3FileSystem(endpoint_override=self.endpoint, allow_bucket_creation=True)


@contextmanager
def object_store(host: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """A server with an empty bucket, on a free port. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be set."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(host, port=0, verbose=False)
    server.start()
    try:
        store = ObjectStore("http://{}:{}".format(*server.get_host_and_port()))
        store.filesystem().create_dir(BUCKET)
        yield store
    finally:
        server.stop()


def set_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that any server here accepts."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
