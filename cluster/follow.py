"""The log of a job as it grows, to the job's end, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TextIO

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from sam3dist.errors import ResourceError

POLL_S = 2.0
QUIET_S = 60.0
"""A stream that says nothing for this long may be cut without a word, and is asked for anew."""
PATIENT_S = 30.0
"""A job that waits for longer is told, with what Ray says of it."""
LOST_AFTER_S = 300.0
"""A cluster that answers nothing for this long is given up."""
BROKEN = (OSError, RuntimeError, ClientError)
"""What a connection can end with: the errors of `requests` are OSErrors, Ray raises RuntimeError."""


class Log:
    """Prints a job's log, every character once.

    The log's stream may break at any time, so it is not trusted with the job's end: after a break the whole log is
    asked for and what is new of it printed, and the job's state is asked for until it is final.
    """

    def __init__(self, client: JobSubmissionClient, job: str, out: TextIO) -> None:
        self.client, self.job, self.out = client, job, out
        self.printed = 0
        self.told = ""

    def followed(self, stop: bool = False) -> JobDetails:
        """The job's details once it has ended, its log printed on the way.

        stop: ask it to end first; then one that has not begun is not waited for, since Ray ends it when it begins.
        ResourceError where the cluster no longer answers, or no longer takes the token.
        """
        answered = began = time.monotonic()
        asked_to_stop = False
        while True:
            try:
                if stop and not asked_to_stop:
                    self.client.stop_job(self.job)
                    asked_to_stop = True
                details = self.client.get_job_info(self.job)
                if details.status == JobStatus.PENDING:
                    if asked_to_stop:
                        return details
                    if time.monotonic() - began > PATIENT_S:
                        self._tell(details.message or "")
                elif not details.status.is_terminal():
                    asyncio.run(self._tail())
                self._catch_up(self.client.get_job_logs(self.job))
                answered = time.monotonic()
                if details.status.is_terminal():
                    return details
            except BROKEN as error:
                if time.monotonic() - answered > LOST_AFTER_S:
                    raise ResourceError(
                        f"{self.job}: the cluster has not answered for {LOST_AFTER_S:g} s ({error})."
                    ) from error
            except AuthenticationError as error:
                reason = " ".join(str(error).split())[:160]
                raise ResourceError(f"{self.job}: the cluster takes the token no more ({reason}).") from error
            time.sleep(POLL_S)

    async def _tail(self) -> None:
        """Print the log as it comes, until the stream ends, breaks, or is silent for long."""
        stream = aiter(self.client.tail_job_logs(self.job))
        seen = 0
        with suppress(*BROKEN, TimeoutError, StopAsyncIteration):  # what was missed is asked for again
            while True:
                chunk = await asyncio.wait_for(anext(stream), QUIET_S)
                self._print(chunk, seen)
                seen += len(chunk)

    def _catch_up(self, log: str) -> None:
        self._print(log, 0)

    def _print(self, text: str, place: int) -> None:
        """Print what is new of a text that begins at this character of the log."""
        self.out.write(text[max(0, self.printed - place) :])
        self.out.flush()
        self.printed = max(self.printed, place + len(text))

    def _tell(self, message: str) -> None:
        """Say what the job waits for, once."""
        if message != self.told:
            self.told = message
            print(f"{self.job}: {' '.join(message.split())}", file=self.out, flush=True)
