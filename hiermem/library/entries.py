"""Facts about the documents of a library, and about those that are being added."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DocumentEntry:
    """A document of a library.

    Attributes:
        id: its number, which no other document of this library ever has.
        name: how it is called; no two documents of a library have the same name.
        kind: of file that it was: pdf, epub, html, docx, markdown or text.
        sha256: of that file's bytes.
        tokens: that it has.
        segments: that it has, the last one included, which may be shorter.
        characters: that it has.
        pages: that it has; 0: it has none.
        bytes: that it takes on the disk.
        added: when, in seconds since 1970.
        folder: where its files are, within the library's folder of documents.
        source: the path that its file was read from; empty: it was no file here.
    """

    id: int
    name: str
    kind: str
    sha256: str
    tokens: int
    segments: int
    characters: int
    pages: int
    bytes: int
    added: float
    folder: str
    source: str = ""


@dataclass(frozen=True)
class Reading:
    """How far the reading of a document has come.

    Attributes:
        characters: that were read.
        total: that it has.
    """

    name: str
    characters: int
    total: int


@dataclass(frozen=True)
class Added:
    """A document that a library was given.

    Attributes:
        outcome: `added`; `replaced`: an older version of that name is gone; `unchanged`: it was there.
    """

    name: str
    outcome: Literal["added", "replaced", "unchanged"]
    entry: DocumentEntry
