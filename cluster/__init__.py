"""The Ray jobs: the only package that imports ray.

What Ray reads from the environment once, when it is imported, is settled here; a person's own settings win.

RAY_DEDUP_LOGS_*: by default Ray folds lines of workers that differ only in their numbers, which is what lines about
progress do. Every line passes except a few about Ray's own housekeeping.
"""

import os

NOISE = "core_worker.cc|PYTHON worker processes have been started|Cleaning up placement group"

os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", NOISE)
os.environ.setdefault("RAY_DEDUP_LOGS_ALLOW_REGEX", f"^(?!.*({NOISE}))")
