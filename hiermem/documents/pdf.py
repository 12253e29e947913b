"""PDF files, page by page, with the entries of the outline as chapters."""

import re
from collections.abc import Iterator

from hiermem.documents.parts import Format, NotReadableError, Part
from hiermem.documents.pdf_cleaning import page_texts, without_running_heads
from hiermem.documents.pdf_pages import isolated_pages

_WORDS = re.compile(r"\w+")


def _parts(data: bytes) -> Iterator[Part]:
    found = isolated_pages(data)
    if not any(found.pages):
        raise NotReadableError(_without_text(len(found.pages)))
    kept = without_running_heads(found.pages)
    chapter = ""
    for number, text in enumerate(page_texts(kept if any(kept) else found.pages), 1):
        for part in _page_parts(number, text, chapter, found.chapters.get(number, [])):
            chapter = part.chapter
            if part.text:
                yield part


def _without_text(pages: int) -> str:
    if not pages:
        return "has no pages: fetch or save it anew"
    counted = "1 page" if pages == 1 else f"{pages} pages"
    return f"has {counted} and no text: it seems to be scanned; make its text readable by OCR first"


def _page_parts(number: int, text: str, chapter: str, titles: list[str]) -> Iterator[Part]:
    """The text of a page in pieces, each from where a chapter begins to where the next one does."""
    start = 0
    for title in titles:
        at = _found(title, text, start)
        if at > start:
            yield Part(text[start:at], number, chapter)
        start, chapter = at, title
    yield Part(text[start:], number, chapter)


def _found(title: str, text: str, start: int) -> int:
    """Where a title stands at the beginning of a line from ``start`` on; ``start``: nowhere."""
    words = _WORDS.findall(title)
    pattern = r"^\W{0,4}" + r"\W{1,4}".join(map(re.escape, words))
    found = re.compile(pattern, re.M | re.I).search(text, start) if words else None
    return start if found is None else found.start()


PDF = Format("pdf", (".pdf",), matches=lambda data: data[:64].lstrip().startswith(b"%PDF-"), parts=_parts)
