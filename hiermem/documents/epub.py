"""EPUB books: the chapters of the spine, each through the HTML path, named by the table of contents."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from hiermem.documents.archives import Archive, holds
from hiermem.documents.charsets import decoded_markup
from hiermem.documents.html import html_parts
from hiermem.documents.markup import Element, html_tree, xml_tree
from hiermem.documents.parts import Format, NotReadableError, Part, spaced

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_CHAPTERS = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")
_CONTENTS = "application/x-dtbncx+xml"

Titles = dict[str, dict[str, str]]
"""Titles of chapters by file, and within it by the id of an element; the empty one: the beginning."""


@dataclass(frozen=True)
class _Item:
    """A file of the book.

    Attributes:
        path: within the archive.
        media: its media type.
        properties: words that say what it is for.
    """

    path: str
    media: str
    properties: frozenset[str] = field(default_factory=frozenset)


class _Package:
    """The list of a book's files, and the order in which they are read."""

    def __init__(self, archive: Archive) -> None:
        containers = xml_tree(archive.read(_CONTAINER)).iter("rootfile")
        path = next((root.get("full-path", "") for root in containers), "")
        self._root = xml_tree(archive.read(path))
        self._items = {
            item.get("id", ""): _Item(
                _resolved(path, item.get("href", "")),
                item.get("media-type", "").strip().lower(),
                frozenset(item.get("properties", "").split()),
            )
            for item in self._root.iter("item")
        }

    def chapters(self) -> list[str]:
        """Paths of the files to read, in order, each once."""
        paths: dict[str, None] = {}
        for reference in self._root.iter("itemref"):
            item = self._items.get(reference.get("idref", ""))
            if item is not None and item.media in _CHAPTERS and reference.get("linear", "yes") != "no":
                paths[item.path] = None
        return list(paths)

    def navigation(self) -> str | None:
        """Path of the table of contents in XHTML."""
        return next((item.path for item in self._items.values() if "nav" in item.properties), None)

    def older_navigation(self) -> str | None:
        """Path of the table of contents in the format of EPUB 2."""
        return next((item.path for item in self._items.values() if item.media == _CONTENTS), None)


def _resolved(base: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(href.partition("#")[0])))


def _titles(archive: Archive, package: _Package) -> Titles:
    """The titles in the table of contents; none where it is missing or damaged, for headings do as well."""
    titles: Titles = {}
    for path, entries in (
        (package.navigation(), _navigation_entries),
        (package.older_navigation(), _older_entries),
    ):
        if titles or path is None or path not in archive:
            continue
        try:
            for href, title in entries(archive.read(path)):
                file = _resolved(path, href) if href.partition("#")[0] else path
                titles.setdefault(file, {}).setdefault(unquote(href.partition("#")[2]), title)
        except NotReadableError:
            continue
    return titles


def _navigation_entries(data: bytes) -> Iterator[tuple[str, str]]:
    root = html_tree(decoded_markup(data))
    lists = [] if root is None else list(root.iter("nav"))
    contents = [each for each in lists if "toc" in _types(each)] or lists[:1]
    for link in (link for each in contents for link in each.iter("a")):
        if title := " ".join("".join(link.itertext()).split()):
            yield link.get("href", ""), title


def _types(element: Element) -> list[str]:
    return [word for name, value in element.attrib.items() if name.endswith("type") for word in value.split()]


def _older_entries(data: bytes) -> Iterator[tuple[str, str]]:
    for point in xml_tree(data).iter("navPoint"):
        label, content = point.find("navLabel"), point.find("content")
        title = "" if label is None else " ".join("".join(label.itertext()).split())
        if title and content is not None:
            yield content.get("src", ""), title


def _check_is_open(archive: Archive, chapters: list[str]) -> None:
    """Refuse a book whose text is encrypted; fonts may be."""
    if _ENCRYPTION not in archive:
        return
    references = xml_tree(archive.read(_ENCRYPTION)).iter("CipherReference")
    if {posixpath.normpath(unquote(each.get("URI", ""))) for each in references} & {*chapters}:
        raise NotReadableError("is encrypted by its seller: give a copy without that protection")


def _parts(data: bytes) -> Iterator[Part]:
    archive = Archive(data)
    package = _Package(archive)
    chapters = package.chapters()
    _check_is_open(archive, chapters)
    yield from spaced(_chapter_parts(archive, chapters, _titles(archive, package)))


def _chapter_parts(archive: Archive, chapters: list[str], titles: Titles) -> Iterator[Part]:
    chapter = ""
    for path in chapters:
        named = titles.get(path)
        # A file that the table of contents leaves out goes on with the chapter before.
        for part in html_parts(decoded_markup(archive.read(path)), named or None):
            chapter = part.chapter or (chapter if titles else "")
            yield Part(part.text, chapter=chapter)


EPUB = Format("epub", (".epub",), matches=lambda data: holds(data, _CONTAINER), parts=_parts)
