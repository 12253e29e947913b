"""Names of uploaded documents: one part, printable, of bounded length."""

import unicodedata

from hiermem.server.failures import wrong

LONGEST = 200
"""Characters of a name."""


def clean_name(given: str) -> str:
    """A name that can be shown in a line and leads nowhere: the last part of a path, without control and
    format characters, such as those that turn the direction of a text.

    Raises:
        ApiError: nothing is left of it.
    """
    last = unicodedata.normalize("NFC", given).replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in last if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029")
    name = " ".join(kept.split()).lstrip(". ")
    if len(name) > LONGEST:
        stem, dot, ending = name.rpartition(".")
        ending = dot + ending if stem and len(ending) <= 10 else ""
        name = name[: LONGEST - len(ending)].rstrip() + ending
    if not name.strip():
        raise wrong("The file has no name: give one with at least one letter.", "file", "invalid_name")
    return name
