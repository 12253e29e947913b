"""Every kind of document that can be read."""

import os
from collections.abc import Mapping

from hiermem.documents.docx import DOCX
from hiermem.documents.epub import EPUB
from hiermem.documents.html import HTML
from hiermem.documents.markdown import MARKDOWN
from hiermem.documents.parts import Format
from hiermem.documents.pdf import PDF
from hiermem.documents.text import TEXT
from hiermem.documents.unsupported import check_supported

FORMATS: tuple[Format, ...] = (PDF, EPUB, DOCX, HTML, MARKDOWN, TEXT)

KINDS: Mapping[str, tuple[str, ...]] = {each.kind: each.endings for each in FORMATS}
"""Endings of files by kind of document."""

_BY_ENDING = {ending: each for each in FORMATS for ending in each.endings}


def format_of(name: str, data: bytes) -> Format:
    """The kind of a document by what it holds, else by the ending of its name, else plain text.

    Raises:
        NotReadableError: it is of a known kind that cannot be read.
    """
    check_supported(data)
    for each in FORMATS:
        if each.matches(data):
            return each
    return _BY_ENDING.get(_ending(name), TEXT)


def is_readable(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the ending of a kind of document that can be read."""
    return _ending(os.fspath(path)) in _BY_ENDING


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
