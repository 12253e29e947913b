"""Answers, citations and files as OpenAI's interface shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hiermem.passages import Source
from hiermem.server.files import DONE, FAILED, StoredFile
from hiermem.server.jobs import Finished

_STATUS = {DONE: "processed", FAILED: "error"}


def citations(finished: Finished, ids: Mapping[str, str]) -> list[dict[str, Any]]:
    """The sources of an answer as file citations, best first.

    Args:
        ids: of files, by the names of their documents.
    """
    answer = finished.answer
    return [_citation(source, ids.get(source.document, ""), len(answer.text)) for source in answer.sources]


def _citation(source: Source, identity: str, index: int) -> dict[str, Any]:
    return {
        "type": "file_citation",
        "file_id": identity,
        "filename": source.document,
        "index": index,
        "page": source.page,
        "chapter": source.chapter,
        "line": source.line,
        "start": source.start,
        "end": source.end,
        "quote": source.text,
    }


def facts(finished: Finished) -> dict[str, Any]:
    """Facts that OpenAI's interface has no place for.

    Returns:
        found: False: the documents do not say.
        confidence: how likely they hold an answer, in 0..1, or null.
        complete: whether the answer ended by itself.
        waited_seconds: before it began.
    """
    answer = finished.answer
    return {
        "found": answer.found,
        "confidence": answer.confidence,
        "complete": answer.complete,
        "waited_seconds": round(finished.waited, 3),
    }


def file_object(file: StoredFile) -> dict[str, Any]:
    """A file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created),
        "filename": file.name,
        "purpose": file.purpose,
        "status": _STATUS.get(file.state, "uploaded"),
        "status_details": file.error or None,
        "expires_at": None,
        "progress": round(file.progress, 4),
    }


def document_object(file: StoredFile) -> dict[str, Any]:
    """A file as the page shows it."""
    entry = file.entry
    return {
        "id": file.id,
        "name": file.name,
        "state": file.state,
        "error": file.error,
        "progress": round(file.progress, 4),
        "kind": entry.kind if entry else "",
        "pages": entry.pages if entry else 0,
        "tokens": entry.tokens if entry else 0,
        "segments": entry.segments if entry else 0,
        "characters": entry.characters if entry else 0,
        "bytes": entry.bytes if entry else file.bytes,
        "added": int(entry.added if entry else file.created),
    }


def listed(data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A list, all of it."""
    ids = [each.get("id") for each in data]
    return {
        "object": "list",
        "data": list(data),
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": False,
    }
