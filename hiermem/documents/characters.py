"""Characters that are no text: controls, marks of bytes, and those that stand for none."""

import re

_NO_TEXT = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\ufeff\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_BLANKS = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2028": "\n", "\u2029": "\n"})


def plain_characters(text: str) -> str:
    """The text without control characters, soft hyphens, byte order marks and characters that are none;
    spaces that forbid a line break become common ones."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _NO_TEXT.sub("", text).translate(_BLANKS)
