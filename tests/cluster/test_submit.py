"""What a job server may say instead of yes, each as one line with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from cluster.submit import submit
from sam3dist.errors import ResourceError

Answers = dict[str, tuple[int, str]]
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
