"""What a job server may say instead of yes, each as one line with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from shutil import copy
from threading import Thread
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.submit import EXCLUDES, submit
from sam3dist.errors import ResourceError

Answers = dict[str, tuple[int, str]]
REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = (200, '{"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}')


@pytest.fixture
def server() -> Iterator[Callable[[Answers], str]]:
    """Starts a server that gives these answers by method, and tells its address."""
    running: list[HTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, text = answers[self.command]
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing."""

        running.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def refusal(address: str) -> str:
    with pytest.raises(ResourceError) as caught:
        submit(["train", "smoke"], address, working_dir=None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_token_is_told_with_the_variables_to_set(server: Callable[[Answers], str]):
    said = refusal(server({"GET": (401, "Unauthorized")}))
    assert "no job server answers there" in said
    assert "RAY_AUTH_TOKEN_PATH" in said


def test_a_cluster_that_takes_no_job_is_quoted(server: Callable[[Answers], str]):
    said = refusal(server({"GET": VERSION, "POST": (500, "the disk is full")}))
    assert "did not take the job" in said
    assert "the disk is full" in said


def test_nobody_at_the_address_is_one_line():
    said = refusal("http://127.0.0.1:9")
    assert said.startswith("run.address=http://127.0.0.1:9: no job server answers there")


@pytest.mark.parametrize("excludes", [(), EXCLUDES], ids=["ray job submit heeds .gitignore", "sam3dist submit"])
def test_the_uploaded_folder_has_the_code_but_neither_shards_nor_runs(excludes: tuple[str, ...], tmp_path: Path):
    folder = tmp_path / "folder"
    left_out = (".venv/lib/big.so", "runs/x/model", "shards/train/0.parquet", "build/x", "cluster/__pycache__/x.pyc")
    uploaded = ("cluster/train.py", "search_spaces/full.yaml", "sam3dist/data/shards.py")
    for name in (*left_out, *uploaded):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    if not excludes:
        copy(REPOSITORY / ".gitignore", folder)
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=not excludes, excludes=list(excludes))
    with ZipFile(package) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names - {".gitignore"} == set(uploaded)
