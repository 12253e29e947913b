"""A document as text: what a file holds, checked before anything reads it. Imports nothing heavy."""

import os
import sys
import warnings
from pathlib import Path

from hiermem.bundled import BUNDLED_DOCUMENTS
from hiermem.errors import InputError

_LONGEST_NAME = 260
"""Characters of a text that may be a file's name by mistake."""


def read_document(name: str) -> str:
    """A document by name: `-` for standard input, a bundled document, or a UTF-8 text file.

    Raises:
        InputError: it is missing, empty or not a UTF-8 text.
    """
    if name in BUNDLED_DOCUMENTS:
        return BUNDLED_DOCUMENTS[name]()
    if name != "-":
        return file_text(name, f"a text file, - for standard input, or {', '.join(BUNDLED_DOCUMENTS)}")
    if sys.stdin is None:
        raise InputError("Standard input is closed: give a text file, or send one there.")
    return decoded_text(sys.stdin.buffer.read(), name)


def file_text(path: str | os.PathLike[str], instead: str = "a text file", kind: str = "document") -> str:
    """The text of a UTF-8 file.

    Args:
        instead: what may be given in its place, for the error.
        kind: what the file is, for the error.

    Raises:
        InputError: it is missing, empty or not a UTF-8 text.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"The {kind} {os.fspath(path)!r} cannot be read ({why}): give {instead}.") from error
    return decoded_text(data, os.fspath(path), kind)


def decoded_text(data: bytes, name: str, kind: str = "document") -> str:
    """The text that ``data`` holds in UTF-8; ``name`` and ``kind`` are for the error.

    Raises:
        InputError: it is empty or not a UTF-8 text.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"The {kind} {name!r} is not UTF-8 text: convert it to plain text first.") from error
    if "\0" in text:
        raise InputError(f"The {kind} {name!r} holds binary data: convert it to plain text first.")
    if not text.strip():
        raise InputError(f"The {kind} {name!r} is empty: give a text with at least one character.")
    return text


def warn_of_name(text: str) -> None:
    """Warn where a text is the name of a file that exists: maybe its content was meant."""
    if len(text) > _LONGEST_NAME or "\n" in text or not os.path.isfile(text):
        return
    warnings.warn(
        f"The text {text!r} is read as it stands, but there is a file of that name: give "
        f"pathlib.Path({text!r}) to read the file.",
        stacklevel=5,  # whoever called `HierMemModel.read` or `index`
    )
