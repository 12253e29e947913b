"""Plain text: what bytes hold, checked before anything reads it."""

import codecs
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from hiermem.documents.parts import Format, NotReadableError, Part
from hiermem.errors import InputError

_LONGEST_NAME = 260
"""Characters of a text that may be a file's name by mistake."""

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def file_text(path: str | os.PathLike[str], instead: str = "a text file", kind: str = "document") -> str:
    """The text of a UTF-8 file, or of a UTF-16 one that begins with a byte order mark.

    Args:
        instead: what may be given in its place, for the error.
        kind: what the file is, for the error.

    Raises:
        InputError: it is missing, empty or no such text.
    """
    return decoded_text(file_bytes(path, instead, kind), os.fspath(path), kind)


def file_bytes(path: str | os.PathLike[str], instead: str = "a text file", kind: str = "document") -> bytes:
    """The bytes of a file; the arguments are those of `file_text`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"The {kind} {os.fspath(path)!r} cannot be read ({why}): give {instead}.") from error


def decoded_text(data: bytes, name: str, kind: str = "document") -> str:
    """The text that ``data`` holds, as in `file_text`; ``name`` and ``kind`` are for the error.

    Raises:
        InputError: it is empty or no such text.
    """
    try:
        return plain_text(data)
    except NotReadableError as problem:
        raise InputError(f"The {kind} {name!r} {problem}.") from problem


def plain_text(data: bytes) -> str:
    """The text that ``data`` holds.

    Raises:
        NotReadableError: as of `decoded_text`.
    """
    wide = data[:2] in _UTF16_MARKS and len(data) > 2
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotReadableError("is not UTF-8 text: convert it to plain text first") from error
    return checked_text(text)


def checked_text(text: str) -> str:
    """The same text.

    Raises:
        NotReadableError: it is empty or holds binary data.
    """
    if "\0" in text:
        raise NotReadableError("holds binary data: convert it to plain text first")
    if not text.strip():
        raise NotReadableError("is empty: give a text with at least one character")
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


def _parts(data: bytes) -> Iterator[Part]:
    yield Part(plain_text(data))


TEXT = Format(
    "text",
    (".txt", ".text", ".rst", ".adoc", ".org", ".csv", ".tsv"),
    matches=lambda data: False,  # whatever is nothing else
    parts=_parts,
)
