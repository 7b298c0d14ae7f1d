"""An S3 server on a machine of its own that fails on demand: python -m tests.faults.store HOST PORT FAULT_FILE

While FAULT_FILE holds "503", it answers with that; while it holds "hang", it takes a minute for each answer.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


def failing(application: Callable[..., Iterable[bytes]], fault: Path) -> Callable[..., Iterable[bytes]]:
    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        wanted = fault.read_text() if fault.is_file() else ""
        if wanted == "hang":
            time.sleep(60)
        if wanted == "503":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return application(environment, start_response)

    return answer


if __name__ == "__main__":
    host, port, fault = sys.argv[1:]
    application = DomainDispatcherApplication(create_backend_app)
    run_simple(host, int(port), failing(application, Path(fault)), threaded=True)
