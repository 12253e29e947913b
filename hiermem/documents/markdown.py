"""Markdown: text as it stands, with its headings as chapters."""

import re
from collections.abc import Iterator

from hiermem.documents.parts import Format, Part
from hiermem.documents.text import plain_text

_HEADING = re.compile(r" {0,3}#{1,3}[ \t]+(\S.*)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def markdown_parts(text: str) -> Iterator[Part]:
    """The text in pieces, each from one heading of the levels 1 to 3 to the next."""
    start, chapter = 0, ""
    for at, heading in _headings(text):
        if at > start:
            yield Part(text[start:at], chapter=chapter)
        start, chapter = at, heading
    yield Part(text[start:], chapter=chapter)


def _headings(text: str) -> Iterator[tuple[int, str]]:
    """First character and name of every heading outside fenced code."""
    at, fence = 0, ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not mark[2].strip():
            fence = ""
        elif not fence and (heading := _HEADING.match(line)):
            yield at, _without_closing(heading[1].strip())
        at += len(line)


def _without_closing(heading: str) -> str:
    """A heading without the marks that may end it, after a space."""
    stripped = heading.rstrip("#")
    return stripped.rstrip() if stripped.endswith((" ", "\t")) else heading


MARKDOWN = Format(
    "markdown",
    (".md", ".markdown", ".mdown"),
    matches=lambda data: False,  # no bytes tell it from plain text
    parts=lambda data: markdown_parts(plain_text(data)),
)
