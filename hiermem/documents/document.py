"""`Document`: a text with its places, from a file, from bytes or from a text."""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hiermem.bundled import BUNDLED_DOCUMENTS
from hiermem.documents.formats import KINDS, format_of
from hiermem.documents.markdown import markdown_parts
from hiermem.documents.parts import NotReadableError, Part
from hiermem.documents.text import checked_text, file_bytes
from hiermem.errors import InputError, plainly

if TYPE_CHECKING:
    from hiermem.memory.places import Places


@dataclass(frozen=True)
class Document:
    """A document as text.

    Attributes:
        name: how people know it.
        kind: one of `KINDS`.
        text: all that it says.
        places: page and chapter of every character.
        sha256: of the file's bytes, or of the text in UTF-8 where there was no file; in hexadecimal.
    """

    name: str
    kind: str
    text: str
    places: "Places"
    sha256: str


def open_document(path: str | os.PathLike[str], name: str | None = None) -> Document:
    """The document in a file.

    Args:
        name: how people know it; None: the file's name.

    Raises:
        InputError: it cannot be read, or holds no text; the sentence says why.
    """
    shown = os.fspath(path)
    return _opened(shown, file_bytes(path, "a file that can be read")).document(name or Path(path).name)


def document_of_bytes(name: str, data: bytes) -> Document:
    """The document in the bytes of a file.

    Args:
        name: how people know it; its ending tells the kind where the bytes do not.

    Raises:
        InputError: as of `open_document`.
    """
    return _opened(name, data).document(name)


def document_of_text(name: str, text: str) -> Document:
    """A text as a document: Markdown where its name ends so, else plain text.

    Raises:
        InputError: it is empty or holds binary data.
    """
    return _of_text(name, text).document(name)


def open_named(name: str) -> Document:
    """The document that `read_document` gives as text.

    Raises:
        InputError: as of `read_document`.
    """
    return _named(name).document(name if name == "-" or name in BUNDLED_DOCUMENTS else Path(name).name)


def read_document(name: str) -> str:
    """The text of a document by name: `-` for standard input, a bundled document, or a file.

    Raises:
        InputError: it is missing, cannot be read, or holds no text.
    """
    return _named(name).text


@dataclass(frozen=True)
class _Opened:
    """A document that was read; its places need torch, so they are made only where they are wanted."""

    kind: str
    parts: tuple[Part, ...]
    sha256: str

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    def document(self, name: str) -> Document:
        from hiermem.memory.places import Place, Places

        marks, at = [], 0
        for part in self.parts:
            marks.append((at, Place(part.page, part.chapter)))
            at += len(part.text)
        return Document(name, self.kind, self.text, Places(marks), self.sha256)


def _named(name: str) -> _Opened:
    if name in BUNDLED_DOCUMENTS:
        return _of_text(name, BUNDLED_DOCUMENTS[name]())
    if name != "-":
        instead = f"a text file, - for standard input, or {', '.join(BUNDLED_DOCUMENTS)}"
        return _opened(name, file_bytes(name, instead))
    if sys.stdin is None:
        raise InputError("Standard input is closed: give a text file, or send one there.")
    return _opened(name, sys.stdin.buffer.read())


def _of_text(name: str, text: str) -> _Opened:
    try:
        checked_text(text)
    except NotReadableError as problem:
        raise InputError(f"The document {name!r} {problem}.") from problem
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if name.lower().endswith(KINDS["markdown"]):
        return _Opened("markdown", tuple(markdown_parts(text)), digest)
    return _Opened("text", (Part(text),), digest)


def _opened(name: str, data: bytes) -> _Opened:
    with plainly(f"The document {name!r} cannot be read", "save it anew, or give its text"):
        try:
            if not data.strip():
                checked_text("")  # which says so
            chosen = format_of(name, data)
            parts = tuple(chosen.parts(data))
        except NotReadableError as problem:
            raise InputError(f"The document {name!r} {problem}.") from problem
    if not any(part.text.strip() for part in parts):
        raise InputError(f"The document {name!r} holds no text: give one with at least one character.")
    return _Opened(chosen.kind, parts, hashlib.sha256(data).hexdigest())
