"""The characters of a markup file, by what it says about its encoding."""

import codecs
import re

from hiermem.documents.parts import NotReadableError

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_HEAD = 4096
_DECLARED = re.compile(
    rb"""(?:<\?xml[^>]*?\bencoding|<meta\b[^>]*?\bcharset)\s*=\s*["']?\s*([\w.:-]{2,40})""", re.I
)
# Encodings of Python that no file is written in, some of which take time that grows with the square of it.
_STRANGE = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7", "mbcs", "oem"}
_AS_BROWSERS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
}


def decoded_markup(data: bytes) -> str:
    """The characters by the byte order mark, else the declared encoding, else UTF-8, else Windows-1252.

    Raises:
        NotReadableError: these are binary data.
    """
    text = _decoded(data)
    if "\0" in text:
        raise NotReadableError("holds binary data: convert it to plain text first")
    return text


def _decoded(data: bytes) -> str:
    for charset in (*_marked(data), *_declared(data), "utf-8"):
        try:
            return data.decode(charset)
        except (UnicodeError, LookupError):
            continue
    return data.decode("cp1252", "replace")


def _marked(data: bytes) -> list[str]:
    return [charset for mark, charset in _MARKS.items() if data.startswith(mark)]


def _declared(data: bytes) -> list[str]:
    found = _DECLARED.search(data, 0, _HEAD)
    if found is None:
        return []
    try:
        name = codecs.lookup(found[1].decode("ascii", "replace")).name
    except LookupError:
        return []
    # A declaration that can be read byte by byte is not in a wide encoding, whatever it says.
    return [] if name in _STRANGE or name.startswith(("utf-16", "utf-32")) else [_AS_BROWSERS.get(name, name)]
