"""The Ray jobs: the only package that imports ray.

What Ray reads from the environment once, when it is imported, is settled here; a person's own settings win.

RAY_AUTH_MODE: a running cluster (RAY_ADDRESS, as in `ray job submit`) has its mode already. Otherwise we start a
cluster for ourselves, and since Ray's control port listens on every interface, whatever address it is given, that
cluster asks for a token: the person's own (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or the file ~/.ray/auth_token), else a
random one that lives in this process and its children only, never in a file.

RAY_DEDUP_LOGS_*: by default Ray folds lines of workers that differ only in their numbers, which is what lines about
progress do. Every line passes except a few about Ray's own housekeeping.
"""

import os
import secrets
from pathlib import Path

NOISE = "core_worker.cc|PYTHON worker processes have been started|Cleaning up placement group"

if "RAY_AUTH_MODE" not in os.environ and "RAY_ADDRESS" not in os.environ:
    os.environ["RAY_AUTH_MODE"] = "token"
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not named and not Path("~/.ray/auth_token").expanduser().is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", NOISE)
os.environ.setdefault("RAY_DEDUP_LOGS_ALLOW_REGEX", f"^(?!.*({NOISE}))")
