"""The page, and what only the page asks for: documents with progress, passages with what stands around them,
the state of the service, and a conversation so far."""

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

import hiermem
from hiermem.memory.places import Places
from hiermem.server.failures import ApiError, json_response, wrong
from hiermem.server.metrics import CONTENT_TYPE
from hiermem.server.responses_api import text_of
from hiermem.server.service import Service
from hiermem.server.shapes import document_object

_WINDOW = 20_000  # characters that are given at once
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_CACHE = "no-cache"


def page_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    static = {file.name: file.read_bytes() for file in files("hiermem.server").joinpath("static").iterdir()}

    def page_file(name: str) -> Response:
        kind = _KINDS[name.rsplit(".", 1)[-1]]
        return Response(static[name], media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": _CACHE})

    @router.api_route("/", methods=["GET", "HEAD"])
    def page() -> Response:
        return page_file("index.html")

    @router.get("/static/{name}")
    def asset(name: str) -> Response:
        if name not in static:
            raise ApiError(404, "There is nothing at this address.")
        return page_file(name)

    @router.get("/health")
    def health() -> Response:
        state = service.worker.state
        body = {"status": "ok" if state == "ready" else state, "version": hiermem.__version__}
        if state != "ready":
            return json_response(body, 503, {"Retry-After": "2"})
        return json_response(body)

    @router.get("/metrics")
    def metrics() -> Response:
        service.count_documents()
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @router.get("/api/status")
    def status() -> Response:
        return json_response(_status(service))

    @router.get("/api/documents")
    def documents() -> Response:
        found = [document_object(file) for file in service.all_files()]
        return json_response({"documents": found, "memory": _memory(service)})

    @router.get("/api/documents/{file_id}/text")
    def text(
        file_id: str,
        start: int = Query(0, ge=0, le=1 << 40),
        end: int = Query(_WINDOW, ge=0, le=1 << 40),
    ) -> Response:
        if not start <= end <= start + _WINDOW:
            raise wrong(f"A passage has at most {_WINDOW} characters.", "end")
        file = service.file(file_id)
        return json_response(_passage(file.name, start, end, *service.text(file)))

    @router.get("/api/conversations/{response_id}")
    def conversation(request: Request, response_id: str) -> Response:
        service.check_open()
        turns = service.sessions.turns(request.state.owner, response_id)
        shown = [{"question": turn.question, "answer": _answer(turn.response)} for turn in turns]
        return json_response({"turns": shown})

    return router


def _status(service: Service) -> dict[str, Any]:
    worker, settings = service.worker, service.settings
    return {
        "state": worker.state,
        "version": hiermem.__version__,
        "library": service.name,
        "waiting": worker.waiting,
        "limits": {
            "upload_bytes": settings.max_upload_bytes,
            "new_tokens": settings.max_new_tokens,
            "question_characters": settings.max_question,
            "waiting": settings.max_queue,
        },
    }


def _memory(service: Service) -> dict[str, int]:
    entries = service.entries()
    return {
        "documents": len(entries),
        "tokens": sum(entry.tokens for entry in entries),
        "segments": sum(entry.segments for entry in entries),
        "bytes": sum(entry.bytes for entry in entries),
    }


def _passage(name: str, start: int, end: int, text: str, places: Places) -> dict[str, Any]:
    """A passage, and the pages and chapters that begin in it; the first mark is of its beginning."""
    start, end = min(start, len(text)), min(end, len(text))
    inside = [(at, place) for at, place in places.marks() if start < at < end]
    marks = [
        {"at": at, "page": place.page, "chapter": place.chapter}
        for at, place in [(start, places.at(start)), *inside]
    ]
    return {
        "name": name,
        "start": start,
        "end": end,
        "characters": len(text),
        "text": text[start:end],
        "line": text.count("\n", 0, start) + 1,
        "marks": marks,
    }


def _answer(response: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": response["id"],
        "text": text_of(response),
        "annotations": response["output"][0]["content"][0]["annotations"],
        "hiermem": response["hiermem"],
    }
