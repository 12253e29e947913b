"""`hiermem ARGUMENTS` in a process of its own, and how it must refuse."""

import json
import os
import subprocess
import sys
from typing import Any


def run(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """`hiermem ARGUMENTS` in a process of its own, offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hiermem.cli.main", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False)


def result(*arguments: object, stdin: bytes | None = None) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    done = run(*arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def assert_refused(done: subprocess.CompletedProcess[bytes], expected: str) -> None:
    """Exit status 2 and one sentence with ``expected`` in it, nothing on standard output."""
    message = done.stderr.decode()
    assert done.returncode == 2, message
    assert expected in message
    assert "Traceback" not in message
    assert len(message.strip().splitlines()) == 1
    assert done.stdout == b""
