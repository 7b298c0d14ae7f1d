"""What a job server may say instead of yes, each as one line with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from cluster.submit import labels, submit
from sam3dist.config.flat import flat_settings
from sam3dist.config.submission import SubmitSettings
from sam3dist.errors import ConfigError, ResourceError

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
        submit(["train", "smoke"], address, SubmitSettings(working_dir=None))
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


def test_settings_come_as_words_and_a_wrong_one_is_named_in_full():
    words = {
        "submit.on_interrupt": "stop",
        "submit.working_dir": "null",
        "submit.id": "7",
        "submit.env.HF_TOKEN": "1e5",
        "submit.metadata.study": "s1",
        "submit.resources.driver": "0.001",
        "submit.grace_s": "60",
    }
    found = flat_settings(SubmitSettings, words, "submit", "submit")
    assert found == SubmitSettings(
        on_interrupt="stop",
        working_dir=None,
        id="7",
        env={"HF_TOKEN": "1e5"},
        metadata={"study": "s1"},
        resources={"driver": 0.001},
        grace_s=60,
    )
    assert flat_settings(SubmitSettings, {}, "submit", "submit") == SubmitSettings()
    for key, value, said in (
        ("submit.on_interupt", "stop", "did you mean submit.on_interrupt?"),
        ("submit.on_interrupt", "kill", "submit.on_interrupt=kill: must be one of leave, stop"),
        ("submit.env.HF_TOKEN", "", "submit.env.HF_TOKEN= is empty"),
        ("submit.resources.driver", "-1", "submit.resources.driver=-1 must be 0 or more"),
        ("submit.id", "a/b", "submit.id=a/b: must be of letters"),
        ("submit.grace_s", "-1", "submit.grace_s=-1 must be 0 or more"),
    ):
        with pytest.raises(ConfigError) as caught:
            flat_settings(SubmitSettings, {key: value}, "submit", "submit")
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "run"),
    [
        (["train", "small", "run.dir=/data/runs/x", "name=y"], "/data/runs/x"),
        (["train", "small", "name=y"], "y"),
        (["tune", "search_spaces/full.yaml"], "full"),
    ],
)
def test_the_dashboard_is_told_verb_and_run(words: list[str], run: str):
    assert labels(words) == {"verb": words[0], "run": run}
