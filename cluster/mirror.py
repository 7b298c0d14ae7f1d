"""A search's own state beside its checkpoints, so that another head goes on with it.

The run directory of a search may lie on the head's own disk. What makes the search itself (Tune's state, Optuna's
study, the scores of ASHA) is small: all of it goes, in one piece, to where `checkpoint.storage_path` keeps the
checkpoints.
"""

from __future__ import annotations

import io
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from ray import tune

from sam3dist.engine.folder import CheckpointFolder
from sam3dist.errors import CheckpointError, first_line

OBJECT = "search.tar"
EVERY_S = 30.0
"""As often at most as Tune writes its own state down."""


class Mirror(tune.Callback):
    """Puts these parts of a run directory into the folder while trials report, and at the end."""

    def __init__(self, run_dir: Path, parts: tuple[str, ...], folder: CheckpointFolder) -> None:
        self.run_dir, self.parts, self.folder = run_dir, parts, folder
        self.written = 0.0

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        if time.monotonic() - self.written > EVERY_S:
            self.put()

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        self.put()

    def on_experiment_end(self, *_: Any, **__: Any) -> None:
        self.put()

    def put(self) -> None:
        """Write the parts as they are. A store that does not answer is told, and the search goes on."""
        self.written = time.monotonic()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for part in self.parts:
                if (self.run_dir / part).exists():
                    archive.add(self.run_dir / part, part)
        try:
            self.folder.put(OBJECT, packed.getvalue())
        except OSError as error:
            print(
                f"sam3dist: the search's state could not be stored ({first_line(error)})", file=sys.stderr, flush=True
            )


def restore(run_dir: Path, folder: CheckpointFolder) -> bool:
    """Whether a search's state was found in the folder and written to a run directory. Raises CheckpointError."""
    packed = folder.get(OBJECT)
    if packed is None:
        return False
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(run_dir, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise CheckpointError(f"{folder.path(OBJECT)}: cannot be unpacked ({first_line(error)}).") from error
    return True
