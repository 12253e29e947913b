"""Markup as a tree in which no entity is expanded, nothing is fetched and nothing hidden is left."""

import re
from html.entities import html5
from typing import TYPE_CHECKING, Any

from hiermem.documents.characters import plain_characters
from hiermem.documents.parts import EXTRA, NotReadableError
from hiermem.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

Element = Any
"""An element of lxml, which has no types."""

_XHTML = re.compile(r"\s*<\?xml|[^<]*(?:<![^>]*>\s*)*<html[^>]*\sxmlns\s*=", re.I)
_DECLARATION = re.compile(r"\s*<\?xml[^>]*\?>")
_ENTITY = re.compile(r"&([A-Za-z]\w{0,40});")
_OF_XML = {"amp", "lt", "gt", "quot", "apos"}
_UNSEEN = (
    "head", "script", "style", "template", "noscript", "svg", "iframe", "object", "audio", "video", "canvas"
)  # fmt: skip
_HIDES = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)


def lxml_etree() -> "ModuleType":
    """lxml's parsers.

    Raises:
        InputError: lxml is missing.
    """
    try:
        from lxml import etree
    except ImportError as error:
        raise InputError(f"Reading HTML, EPUB and DOCX needs lxml: {EXTRA}.") from error
    return etree


def xml_tree(data: bytes) -> Element:
    """The root of an XML document; names lose their namespaces.

    Raises:
        NotReadableError: it is not well-formed, or beyond bounds.
    """
    etree = lxml_etree()
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise NotReadableError("is damaged (its XML is not well-formed): fetch or save it anew") from error
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return root


def html_tree(text: str) -> Element | None:
    """The root of an HTML or XHTML document, without what is not shown; None: there is no element.

    Raises:
        NotReadableError: it is beyond the bounds of the parser.
    """
    root = _xhtml_root(text) if _XHTML.match(text) else None
    if root is None:
        root = _html_root(_without_declaration(text))
    if root is None:
        return None
    for element in root.iter():
        element.text = plain_characters(element.text or "")
        element.tail = plain_characters(element.tail or "")
    for element in list(root.iter()):
        if _is_hidden(element):
            element.clear(keep_tail=True)
            element.tag = "span"
    return root


def _xhtml_root(text: str) -> Element | None:
    # Where no entity is left, a document type that declares some expands none.
    text = _ENTITY.sub(_character, _without_declaration(text))
    try:
        root = xml_tree(text.encode("utf-8", "replace"))
    except NotReadableError:
        return None
    return root if root.tag.lower() == "html" else None


def _without_declaration(text: str) -> str:
    declaration = _DECLARATION.match(text)
    return text[declaration.end() :] if declaration else text


def _character(entity: re.Match[str]) -> str:
    if entity[1] in _OF_XML:
        return entity[0]
    text = html5.get(entity[1] + ";", entity[0])
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _html_root(text: str) -> Element | None:
    etree = lxml_etree()
    parser = etree.HTMLParser(
        encoding="utf-8", no_network=True, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, etree.ParserError):
        root = None
    if any(each.level_name == "FATAL" and "LIMIT" in each.type_name for each in parser.error_log):
        raise NotReadableError("is nested too deeply, or one of its texts is too long: give its text")
    return root


def _is_hidden(element: Element) -> bool:
    given = element.attrib
    if element.tag in _UNSEEN or "hidden" in given or _HIDES.search(given.get("style", "")):
        return True
    return element.tag == "dialog" and "open" not in given
