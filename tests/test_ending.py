"""How processes end, above all those that were one of many."""

import os
import subprocess
import sys

import pytest

ENDS = """
import atexit, os, sys
from hiermem import ending

class Disturbed:
    def __del__(self):  # as a thread that takes the interpreter's lock while it ends
        os.abort()

disturbed = Disturbed()
atexit.register(print, "registered")
print("written", end=" ")  # still in the buffer
if {at_once}:
    ending.end_at_once()
ending.end({status})
"""

JOINS = """
import os
from hiermem import ending
from hiermem.training.distributed import one_of_many

with one_of_many(always=True) as first:
    assert first
assert ending._at_once
ending.end(3)
"""


def ended(
    program: str, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", program],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**known, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize(("status", "output"), [(0, "written registered"), (2, "written")])
def test_one_of_many_ends_with_its_status_whatever_threads_are_left(status: int, output: str) -> None:
    done = ended(ENDS.format(at_once=True, status=status))
    assert (done.returncode, done.stdout.strip()) == (status, output), done.stderr


def test_a_process_alone_ends_as_python_ends() -> None:
    done = ended(ENDS.format(at_once=False, status=0))
    assert done.returncode < 0 and done.stdout.strip() == "written registered"


def test_what_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        assert ended(ENDS.format(at_once=True, status=0), full.fileno()).returncode == 120


def test_joining_a_group_is_what_makes_the_end_come_at_once() -> None:
    group = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = ended(JOINS, **group)
    assert done.returncode == 3, done.stderr
