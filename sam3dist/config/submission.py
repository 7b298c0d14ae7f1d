"""What `submit` can be told about the job, beside the verb that it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from sam3dist.errors import ConfigError


@dataclass(frozen=True)
class SubmitSettings:
    """A plain data class: whoever follows a job needs no more than Ray."""

    on_interrupt: Literal["leave", "stop"] = "leave"
    """What Ctrl-C does to the job, and SIGTERM to whoever follows it: leave lets it go on, stop ends it in order."""
    working_dir: str | None = "."
    """Folder that is uploaded and that the job runs in, or the address of a zip file; None where all nodes have the
    package."""
    id: str | None = None
    """Submission id; Ray runs no second job of the same. None draws one."""
    follow: bool = True
    """False: return once the cluster has taken the job."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job and its workers."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Words that the dashboard shows of the job, beside its verb and run."""
    resources: dict[str, float] = field(default_factory=dict)
    """What the driver reserves: CPU, GPU, memory in bytes, or a resource of your own that only the head has. A driver
    that reserves nothing runs on the head."""
    grace_s: int = 30
    """Seconds between SIGTERM and SIGKILL when the job is stopped: its workers save a checkpoint in 25."""

    def __post_init__(self) -> None:
        if self.id is not None and not re.fullmatch(r"[\w.-]+", self.id):
            raise ConfigError(f"submit.id={self.id}: must be of letters, digits, dots and dashes.")
        if self.grace_s < 0:
            raise ConfigError(f"submit.grace_s={self.grace_s} must be 0 or more.")
        for name, amount in self.resources.items():
            if amount < 0:
                raise ConfigError(f"submit.resources.{name}={amount:g} must be 0 or more.")
