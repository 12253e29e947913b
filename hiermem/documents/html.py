"""HTML and XHTML as text, by inscriptis, with headings as chapters."""

import re
from collections.abc import Iterator, Mapping

from hiermem.documents.charsets import decoded_markup
from hiermem.documents.markup import Element, html_tree
from hiermem.documents.parts import EXTRA, Format, Part, spaced
from hiermem.documents.tables import flatten_tables
from hiermem.errors import InputError

_HEAD = re.compile(
    rb"(?:<\?xml[^>]*+>|<!--(?:(?!-->).)*+-->|\s++)*+(?:<!doctype\s+html\b|<html[\s>])", re.I | re.S
)
_MARKS = b"\xef\xbb\xbf\xff\xfe"  # of byte orders
_MARK = "\ufdd0"  # no character of any text, and none is left in the tree
_MARKED = re.compile(f"{_MARK}(\\d+){_MARK}")
_NUMBER = re.compile(r"[0-9]{1,6}")
_DEEPEST_LIST = 8
_BLANK_LINES = re.compile(r"\n{3,}")


def html_parts(text: str, titles: Mapping[str, str] | None = None) -> Iterator[Part]:
    """The text of a document, in pieces from one chapter to the next.

    Args:
        titles: of chapters, by the ids of the elements that they begin at, the empty one for the whole; None:
            headings of the levels 1 to 3 are the chapters.

    Raises:
        NotReadableError: it is beyond the bounds of the parser.
        InputError: inscriptis or lxml is missing.
    """
    root = html_tree(text)
    if root is None:
        return
    chapters = _mark_headings(root) if titles is None else _mark_elements(root, titles)
    _simplify(root)
    shown = _converted(root)
    start, chapter = 0, (titles or {}).get("", "")
    for mark in _MARKED.finditer(shown):
        at = shown.rfind("\n", 0, mark.start()) + 1
        if at > start:
            yield Part(_tidy(shown[start:at]), chapter=chapter)
        start, chapter = at, chapters[int(mark[1])]
    yield Part(_tidy(shown[start:]), chapter=chapter)


def _mark_headings(root: Element) -> list[str]:
    """Mark every heading; returns what they say."""
    chapters: list[str] = []
    for heading in root.iter("h1", "h2", "h3"):
        if name := " ".join("".join(heading.itertext()).split()):
            heading.text = _mark(len(chapters)) + (heading.text or "")
            chapters.append(name)
    return chapters


def _mark_elements(root: Element, titles: Mapping[str, str]) -> list[str]:
    """Mark the elements that chapters begin at; returns the titles in the order of the marks."""
    chapters: list[str] = []
    for element in root.iter():
        name = element.get("id") or element.get("name")
        if name and name in titles:
            element.text = _mark(len(chapters)) + (element.text or "")
            chapters.append(titles[name])
    return chapters


def _mark(number: int) -> str:
    return f"{_MARK}{number}{_MARK}"


def _simplify(root: Element) -> None:
    """Leave nothing that would draw tables, indent by style or nest lists without bound."""
    flatten_tables(root)
    for numbered in root.iter("ol"):
        first = next(numbered.iterchildren("li"), None)
        if first is not None:
            first.set("value", first.get("value", numbered.get("start", "")))
    for element in root.iter():
        value = element.get("value", "") if element.tag == "li" else ""
        element.attrib.clear()
        if _NUMBER.fullmatch(value):
            element.set("value", value)
    for inner in list(root.iter("ul", "ol")):
        if sum(1 for _ in inner.iterancestors("ul", "ol")) >= _DEEPEST_LIST:
            inner.tag = "div"


def _converted(root: Element) -> str:
    try:
        from inscriptis.css_profiles import CSS_PROFILES
        from inscriptis.html_engine import Inscriptis
        from inscriptis.model.config import ParserConfig
    except ImportError as error:
        raise InputError(f"Reading HTML, EPUB and DOCX needs inscriptis: {EXTRA}.") from error
    for element in root.iter():
        # inscriptis takes entities for characters once more.
        element.text = (element.text or "").replace("&", "&amp;")
        element.tail = (element.tail or "").replace("&", "&amp;")
    shown: str = Inscriptis(root, ParserConfig(css=CSS_PROFILES["strict"])).get_text()
    return shown


def _tidy(text: str) -> str:
    """The text without marks, white space at line ends, and more than one blank line."""
    lines = [line.rstrip() for line in _MARKED.sub("", text).split("\n")]
    return _BLANK_LINES.sub("\n\n", "\n".join(lines))


HTML = Format(
    "html",
    (".html", ".htm", ".xhtml"),
    matches=lambda data: _HEAD.match(data[:8192].replace(b"\0", b"").lstrip(_MARKS)) is not None,
    parts=lambda data: spaced(html_parts(decoded_markup(data))),
)
