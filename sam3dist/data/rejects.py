"""What is set aside: every bad record with its reason, counted, and a limit on how many there may be."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from sam3dist.errors import DataError

log = logging.getLogger(__name__)


class Reject(Exception):  # noqa: N818 - not an error: it carries a verdict from where it falls to where it is counted
    """This record cannot be used: a reason of one or two words, and the detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Rejects:
    """Counts records by kind and reason; with a path, it also writes each as one JSON line."""

    def __init__(self, path: Path | None = None) -> None:
        self.by_reason: Counter[str] = Counter()
        self.by_kind: Counter[str] = Counter()
        self._file = None if path is None else path.open("w", encoding="utf-8")
        self._lock = threading.Lock()

    def add(self, kind: str, name: Any, reject: Reject) -> None:
        """Sets one record aside. Kinds: image, pair, annotation, category, row."""
        with self._lock:
            self.by_kind[kind] += 1
            self.by_reason[reject.reason] += 1
            first = self.by_reason[reject.reason] == 1
            if self._file is not None:
                line = {"kind": kind, "id": name, "reason": reject.reason, "detail": reject.detail}
                self._file.write(json.dumps(line) + "\n")
        if first:
            log.warning("set aside %s %s (%s): %s", kind, name, reject.reason, reject.detail)

    def check(self, kind: str, total: int, max_share: float, setting: str) -> None:
        """Raises DataError when more than `max_share` of `total` records of this kind were set aside."""
        if self.by_kind[kind] > max_share * total:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.by_reason.most_common())
            raise DataError(
                f"{setting}={max_share}: {self.by_kind[kind]} of {total} {kind} records were set aside "
                f"({reasons}); mend the data or raise {setting}."
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
