"""Passages as other programs take them."""

from typing import Any

from hiermem.passages import Source


def metadata(source: Source) -> dict[str, Any]:
    """Document, place and score of a passage, as plain JSON types; what is not known is left out."""
    facts = {
        "document": source.document,
        "page": source.page,
        "chapter": source.chapter or None,
        "line": source.line,
        "start": source.start,
        "end": source.end,
        "score": source.score,
    }
    return {name: value for name, value in facts.items() if value is not None}
