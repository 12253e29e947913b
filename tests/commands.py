"""`hiermem ARGUMENTS`, and how it must refuse."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest.mock import patch

from hiermem.cli.main import main

Done = subprocess.CompletedProcess[bytes]


def run(*arguments: object, stdin: bytes = b"") -> Done:
    """The command in this process: seconds of imports are paid once."""
    command = ["hiermem", *map(str, arguments)]
    out, err, given = (io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (b"", b"", stdin))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", given), patch("sys.argv", command):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        finally:  # after a command, signals end its process
            for number, handler in handlers.items():
                signal.signal(number, handler)
    out.flush(), err.flush()
    return subprocess.CompletedProcess(command, status, out.buffer.getvalue(), err.buffer.getvalue())  # type: ignore[attr-defined]


def run_alone(*arguments: object) -> Done:
    """The command in a process of its own, offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hiermem.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


def result(*arguments: object, stdin: bytes = b"") -> dict[str, Any]:
    """The one JSON object that a command prints."""
    done = run(*arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def assert_refused(done: Done, expected: str) -> None:
    """Exit status 2 and one sentence with ``expected`` in it, nothing on standard output."""
    message = done.stderr.decode()
    assert done.returncode == 2, message
    assert expected in message
    assert "Traceback" not in message
    assert len(message.strip().splitlines()) == 1
    assert done.stdout == b""
