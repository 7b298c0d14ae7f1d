"""optuna-dashboard shows the study of a search, wherever it is kept: asked as a browser would, without a socket."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from optuna_dashboard import wsgi

from cluster.searcher import study_storage
from tests.cluster.test_searcher import STEPS, joint, make_search, told


def asked(app: Any, path: str) -> Any:
    """What the dashboard answers to GET, which must be 200."""
    environment: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "wsgi.input": BytesIO()}
    setup_testing_defaults(environment)
    status: list[str] = []
    body = b"".join(app(environment, lambda line, headers, info=None: status.append(line)))
    assert status == ["200 OK"], body
    return body


@pytest.mark.parametrize("kept", ["journal", "database"])
def test_the_dashboard_shows_every_trial(kept: str, tmp_path: Path):
    storage = {"storage": f"sqlite:///{tmp_path}/studies.db"} if kept == "database" else {}
    settings = make_search(name="joint", **storage)
    search = joint(settings, tmp_path)
    for name in ("long", "short", "broken"):
        search.suggest(name)
    search.on_trial_complete("long", told(STEPS, quality=0.4))
    search.on_trial_complete("short", told(STEPS // 2))
    search.on_trial_complete("broken", None, error=True)

    app = wsgi(study_storage(settings, tmp_path / "journal"))
    assert b"<html" in asked(app, "/dashboard").lower()
    (study,) = json.loads(asked(app, "/api/studies"))["study_summaries"]
    assert study["study_name"] == "joint"
    shown = json.loads(asked(app, f"/api/studies/{study['study_id']}"))
    assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Pruned", "Fail"]
    assert shown["trials"][0]["values"] == [0.4, 1.0]
    assert shown["directions"] == ["maximize", "minimize"]
