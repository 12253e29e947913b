"""Pages of a PDF as lines, by PDFium: in this process, or in one of its own.

Some files, made to, keep PDFium busy for ever or make it fail; in a process of its own that harms nothing.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from threading import Lock
from typing import Any

from hiermem.documents.characters import plain_characters
from hiermem.documents.parts import EXTRA, NotReadableError
from hiermem.documents.pdf_cleaning import cleaned
from hiermem.documents.pdf_layout import in_reading_order
from hiermem.documents.pdf_lines import Line, PageText
from hiermem.errors import InputError

_PDFIUM = Lock()
"""Held while PDFium does anything: it does not work in two threads at once."""

SECONDS = 120
"""Time that a process of its own has, beside a second for every 100 kB of the file."""

_MOST_MEMORY = (
    8 << 30
)  # bytes of address space, of which PDFium takes a part; for files that unpack to too much
_MOST_CHAPTERS, _MOST_ON_PAGE = 20_000, 100
_DEEPEST_CHAPTER = 3
_LONGEST_TITLE = 200
_DAMAGED = "fetch or save it anew"
_COMMAND = "from hiermem.documents.pdf_pages import main; main()"


@dataclass(frozen=True)
class PdfPages:
    """Contents of a PDF.

    Attributes:
        pages: the lines of each page.
        chapters: titles of the chapters that begin on a page, by its number, from 1.
    """

    pages: list[list[Line]]
    chapters: dict[int, list[str]]


def isolated_pages(data: bytes) -> PdfPages:
    """Contents of a PDF, found by a process of its own.

    Raises:
        NotReadableError: it is damaged, encrypted or takes too long.
        InputError: pypdfium2 is missing.
    """
    if find_spec("pypdfium2") is None:
        raise InputError(f"Reading PDF needs pypdfium2: {EXTRA}.")
    if not sys.executable:  # Python within another program
        return pages_of(data)
    seconds = SECONDS + len(data) / 100_000
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _COMMAND],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": paths},
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise NotReadableError(f"takes more than {seconds:.0f} seconds to read: give its text") from error
    except subprocess.CalledProcessError as error:
        raise NotReadableError(f"is damaged, and PDFium fails on it: {_DAMAGED}") from error
    return _unpacked(json.loads(done.stdout))


def main() -> None:
    """Be the process of `isolated_pages`: a PDF from standard input, what it holds to standard output."""
    _bound_memory()
    try:
        packed = _packed(pages_of(sys.stdin.buffer.read()))
    except NotReadableError as problem:
        packed = {"problem": str(problem)}
    sys.stdout.buffer.write(json.dumps(packed).encode("ascii"))


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > _MOST_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, most))


def _packed(found: PdfPages) -> dict[str, Any]:
    lines = [
        [(each.text, each.left, each.right, each.base, each.height) for each in page] for page in found.pages
    ]
    return {"pages": lines, "chapters": list(found.chapters.items())}


def _unpacked(packed: dict[str, Any]) -> PdfPages:
    if "problem" in packed:
        raise NotReadableError(packed["problem"])
    return PdfPages([[Line(*line) for line in page] for page in packed["pages"]], dict(packed["chapters"]))


def pages_of(data: bytes) -> PdfPages:
    """Contents of a PDF, found in this process.

    Raises:
        NotReadableError: it is damaged or encrypted.
        InputError: pypdfium2 is missing.
    """
    with _PDFIUM:
        document = _open(data)
        try:
            pages = [_page_lines(document, number) for number in range(1, len(document) + 1)]
            return PdfPages(pages, _chapters(document))
        finally:
            document.close()


def _open(data: bytes) -> Any:
    """The document of pypdfium2."""
    try:
        import pypdfium2
    except ImportError as error:
        raise InputError(f"Reading PDF needs pypdfium2: {EXTRA}.") from error
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise NotReadableError("needs a password: save it without one first") from error
        raise NotReadableError(f"is no PDF, or a damaged one: {_DAMAGED}") from error


def _page_lines(document: Any, number: int) -> list[Line]:
    """The lines of a page; nothing of it stays open."""
    try:
        page = document[number - 1]
    except Exception as error:  # of PDFium, or of ctypes where a number is out of its range
        raise NotReadableError(f"is damaged (page {number} cannot be read): {_DAMAGED}") from error
    try:
        if page.get_rotation() and _quarters(page) == 0:
            # PDFium takes the lines of a page that shows its text turned in the order of the turned page.
            page.set_rotation(0)
        text = page.get_textpage()
        try:
            lines = [cleaned(line) for line in PageText(text).lines()]
            ordered = in_reading_order([line for line in lines if line.text])
            return [replace(line, cells=()) for line in ordered]
        finally:
            text.close()
    finally:
        page.close()


def _quarters(page: Any) -> int:
    text = page.get_textpage()
    try:
        return PageText(text).quarters
    finally:
        text.close()


def _chapters(document: Any) -> dict[int, list[str]]:
    """Chapters of the outline; nothing where it is damaged."""
    chapters: dict[int, list[str]] = {}
    try:
        for entry in islice(document.get_toc(max_depth=_DEEPEST_CHAPTER), _MOST_CHAPTERS):
            target = entry.get_dest()
            index = None if target is None else target.get_index()
            title = " ".join(plain_characters(entry.get_title()).split())[:_LONGEST_TITLE]
            if index is not None and title and len(chapters.get(index + 1, ())) < _MOST_ON_PAGE:
                chapters.setdefault(index + 1, []).append(title)
    except Exception:  # a damaged outline may raise anything, and the text is there without it
        return chapters
    return chapters
