"""Word files (.docx), which mammoth turns into HTML."""

import io
import re
from collections.abc import Iterator

from hiermem.documents.archives import Archive, holds
from hiermem.documents.html import html_parts
from hiermem.documents.markup import xml_tree
from hiermem.documents.parts import EXTRA, Format, NotReadableError, Part, spaced
from hiermem.errors import InputError

_BODY = "word/document.xml"
_TITLE = "p[style-name='Title'] => h1:fresh"
# mammoth's own parser would expand entities, and Word declares none.
_DECLARES = re.compile(rb"<!\0?(?:D|\0D)")


def _parts(data: bytes) -> Iterator[Part]:
    try:
        import mammoth
    except ImportError as error:
        raise InputError(f"Reading DOCX needs mammoth: {EXTRA}.") from error
    _check(Archive(data))
    # Images are left out unopened, and a style map that the file carries is not its author's business.
    html = mammoth.convert_to_html(
        io.BytesIO(data),
        style_map=_TITLE,
        convert_image=lambda image: [],
        include_embedded_style_map=False,
        external_file_access=False,
    ).value
    yield from spaced(html_parts(html))


def _check(archive: Archive) -> None:
    """Refuse XML that mammoth's parser, which has no bounds, should not see."""
    if _BODY not in archive and not any(name.startswith("word/") for name in archive.names()):
        raise NotReadableError("is no Word file: save it anew as .docx")
    for name in archive.names():
        if name.lower().endswith((".xml", ".rels")):
            content = archive.read(name)
            if _DECLARES.search(content):
                raise NotReadableError("declares a document type, as no Word file does: save it anew")
            xml_tree(content)


DOCX = Format("docx", (".docx",), matches=lambda data: holds(data, _BODY), parts=_parts)
