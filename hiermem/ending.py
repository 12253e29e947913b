"""The end of a process: the interpreter's own, or at once where threads would disturb that."""

import atexit
import logging
import os
import sys
from typing import NoReturn

_at_once = False


def end_at_once() -> None:
    """Let `end` do without the interpreter's own end, once this process has joined a process group.

    Threads of groups that a library still holds (DeepSpeed keeps some in globals) outlive
    `destroy_process_group`. One that takes the interpreter's lock while it ends kills the process, after all
    its work is done (https://github.com/pytorch/pytorch/issues/190489).
    """
    global _at_once
    _at_once = True


def end(status: int) -> NoReturn:
    """End this process with an exit status; the last thing that a command does.

    Where it ends at once, functions that are registered for the end run first, unless the command failed:
    other processes wait for one that failed, until the launcher sees its end.
    """
    if not _at_once:
        sys.exit(status)
    if status == 0:
        atexit._run_exitfuncs()
    logging.shutdown()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120  # as the interpreter has it
    os._exit(status)
