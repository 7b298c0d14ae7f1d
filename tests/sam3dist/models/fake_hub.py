"""A Hugging Face hub of this machine: the few answers that a download asks for, and the ways in which one fails."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from sam3dist.models import hub as hub_module

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """Models by id, each a mapping of file names to bytes, served under `url`."""

    models: dict[str, dict[str, bytes]]
    url: str = ""
    gated: bool = False
    """Files only for the token "hf_good", as the real hub says it of models with a licence to accept."""
    lies: set[str] = field(default_factory=set)
    """Files that are listed with another checksum than they have."""
    cuts: list[int] = field(default_factory=list)
    """The next answers with a file break off after so many bytes."""
    stalls_after: int | None = None
    """Answers with a file stop after so many bytes, without an end."""
    busy: int = 0
    """So many answers with a file are 503."""
    moved: bool = False
    """Files are at another host, to which the hub sends on."""
    parts: bool = True
    """Whether a Range is understood."""
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """File, Range and Authorization of every request for a file."""
    let_go: threading.Event = field(default_factory=threading.Event)

    def listing(self, hub_id: str) -> dict[str, object]:
        siblings = []
        for name, content in self.models[hub_id].items():
            sha = hashlib.sha256(content + (b"!" if name in self.lies else b"")).hexdigest()
            entry: dict[str, object] = {"rfilename": name, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if name.endswith((".safetensors", ".pt", ".bin")) or name in self.lies:
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": hub_id, "modelId": hub_id, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if self.headers.get("Authorization") == "Bearer hf_expired":
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return
        if path.startswith("api/models/"):
            hub_id, _, revision = path.removeprefix("api/models/").partition("/revision/")
            if hub_id not in self.hub.models:
                self.refuse(404, "RepoNotFound")
            elif revision not in ("", "main", COMMIT):
                self.refuse(404, "RevisionNotFound")
            else:
                self.answer(200, json.dumps(self.hub.listing(hub_id)).encode())
            return
        hub_id, _, rest = path.partition("/resolve/")
        if hub_id not in self.hub.models:  # what else the client may ask
            self.refuse(404, "")
            return
        content = self.hub.models[hub_id][rest.partition("/")[2]]
        token, part = self.headers.get("Authorization"), self.headers.get("Range")
        self.hub.asked.append((rest.partition("/")[2], part, token))
        if self.hub.gated and token != "Bearer hf_good":
            self.refuse(403 if token else 401, "GatedRepo")
        elif self.hub.moved and "localhost" not in self.headers["Host"]:
            self.send_response(302)
            self.send_header("Location", self.hub.url.replace("127.0.0.1", "localhost") + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.hub.busy > 0:
            self.hub.busy -= 1
            self.refuse(503, "")
        else:
            self.send_file(content, part)

    def send_file(self, content: bytes, part: str | None) -> None:
        start = int(part.removeprefix("bytes=").rstrip("-")) if part and self.hub.parts else 0
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.hub.stalls_after is not None:
            self.wfile.write(rest[: self.hub.stalls_after])
            self.wfile.flush()
            self.hub.let_go.wait(30)
            self.close_connection = True
        elif self.hub.cuts:
            self.wfile.write(rest[: self.hub.cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving(models: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    """A hub with these models, open inside."""
    hub = FakeHub(models)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.let_go.set()
        server.shutdown()
        server.server_close()


def pretend(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """The client takes this hub for the real one; nobody is logged in, nothing is cached, and nobody waits."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub_module, "PAUSE_S", 0.0)
