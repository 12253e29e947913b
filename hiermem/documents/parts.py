"""Parts of a document, and a kind of document that gives them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

EXTRA = "pip install 'hiermem-torch[documents]'"
"""Installs the libraries that parse documents."""


class NotReadableError(Exception):
    """The end of a sentence that begins with the name of a document: what is wrong with it, what to do."""


@dataclass(frozen=True)
class Part:
    """Text of one page or chapter; the parts of a document follow one another without anything between.

    Attributes:
        text: with the white space that divides it from the next part.
        page: its number, from 1; None: the document has no pages.
        chapter: the heading over it; empty: there is none.
    """

    text: str
    page: int | None = None
    chapter: str = ""


@dataclass(frozen=True)
class Format:
    """A kind of document.

    Attributes:
        kind: its name.
        endings: of files of this kind, in small letters.
        matches: whether bytes are of this kind, whatever the file is called.
        parts: the parts that bytes hold; raises `NotReadableError`, and may raise anything on damaged ones.
    """

    kind: str
    endings: tuple[str, ...]
    matches: Callable[[bytes], bool]
    parts: Callable[[bytes], Iterator[Part]]


def spaced(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts that hold text, with a blank line between them."""
    pending: Part | None = None
    for part in parts:
        text = part.text.strip("\n")
        if not text.strip():
            continue
        if pending is not None:
            yield replace(pending, text=pending.text + "\n\n")
        pending = replace(part, text=text)
    if pending is not None:
        yield replace(pending, text=pending.text + "\n")
