"""Structured log: one JSON object a line on the error stream, never what was asked or read."""

import json
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

_lock = threading.Lock()


def log(event: str, **facts: Any) -> None:
    """Write a line; where nobody listens, go on."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    line = json.dumps({"time": f"{stamp}Z", "event": event} | facts, ensure_ascii=True, default=str)
    with _lock, suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def log_error(event: str, error: BaseException, **facts: Any) -> None:
    """Write a line about an error: where it arose, not its text, which may quote what was asked."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
    log(event, error=type(error).__name__, where=where, **facts)
