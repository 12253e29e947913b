"""Standard streams of any kind: closed, ended, or of an encoding that lacks characters."""

import json
import os
import sys
from contextlib import suppress
from typing import Any

CLOSED_PIPE = 128 + 13
"""Exit status of a program whose reader went away, as of one that SIGPIPE ended."""


class ReaderGone(Exception):
    """Nobody reads standard output any more."""


def prepare() -> None:
    """Give closed streams a place to go, and replace characters that an encoding lacks."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def emit(result: dict[str, Any] | list[dict[str, Any]], as_json: bool, text: str) -> None:
    """Print a command's result: one JSON object, a list of them, or words.

    Raises:
        ReaderGone: nobody reads it.
    """
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    write((json.dumps(result, ensure_ascii=not unicode) if as_json else text) + "\n")


def write(text: str) -> None:
    """Write to standard output at once.

    Raises:
        ReaderGone: nobody reads it.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        if sys.stdout is sys.__stdout__:  # Python writes once more what is left when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise ReaderGone from error


def complain(message: str) -> None:
    """Write a sentence to the error stream; where nobody listens, go on."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"hiermem: {message}\n")
        sys.stderr.flush()
