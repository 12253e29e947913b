"""`/v1/responses`: questions whose conversation the service keeps."""

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from hiermem.answer import Answer
from hiermem.chat import Turn
from hiermem.server.bodies import json_body
from hiermem.server.failures import ApiError, as_api_error, json_response, missing
from hiermem.server.jobs import Finished, Job, Question
from hiermem.server.requests import ResponsesRequest, conversation
from hiermem.server.service import Service
from hiermem.server.sessions import StoredTurn
from hiermem.server.shapes import citations, facts
from hiermem.server.streams import COMMENT, event_stream, events_or_silence, result, sse

_TURNS = 8  # before a question that are looked up


def responses_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/responses")
    async def create(request: Request) -> Response:
        asked = ResponsesRequest.parse(await json_body(request))
        text, turns = conversation(asked.input, service.settings.max_question)
        documents = await run_in_threadpool(service.scope, asked.model, asked.hiermem)
        before = await run_in_threadpool(_turns_before, service, request, asked.previous_response_id)
        question = Question(
            text,
            (*before, *turns)[-_TURNS:],
            documents,
            asked.hiermem.before,
            service.tokens(asked.max_output_tokens),
            (),
            asked.stream,
        )
        job = service.submit(request.state.client, question)
        made = _Making(service, request, asked, text)
        if asked.stream:
            return event_stream(_streamed(job, made))
        return json_response(await made.finish(await result(job, request)))

    @router.get("/v1/responses/{response_id}")
    def retrieve(request: Request, response_id: str) -> Response:
        return json_response(_turn(service, request, response_id).response)

    @router.delete("/v1/responses/{response_id}")
    def delete(request: Request, response_id: str) -> Response:
        service.check_open()
        if not service.sessions.delete(request.state.owner, response_id):
            raise _unknown("response_id")
        return json_response({"id": response_id, "object": "response", "deleted": True})

    return router


def text_of(response: Mapping[str, Any]) -> str:
    """The text of a response."""
    return str(response["output"][0]["content"][0]["text"])


def _turn(service: Service, request: Request, response: str) -> StoredTurn:
    service.check_open()
    turn = service.sessions.turn(request.state.owner, response)
    if turn is None:
        raise _unknown("response_id")
    return turn


def _turns_before(service: Service, request: Request, previous: str | None) -> list[Turn]:
    turns = service.sessions.turns(request.state.owner, previous, _TURNS)
    if previous is not None and not turns:
        raise _unknown("previous_response_id")
    return [Turn(turn.question, Answer(text_of(turn.response), [])) for turn in turns]


def _unknown(param: str) -> ApiError:
    return missing("There is no such response.", "response_not_found", param)


class _Making:
    """The JSON of one response, as it comes to be."""

    def __init__(self, service: Service, request: Request, asked: ResponsesRequest, question: str) -> None:
        self._service, self._request, self._asked = service, request, asked
        self._question, self._created = question, time.time()
        self.id, self.item = f"resp_{secrets.token_hex(16)}", f"msg_{secrets.token_hex(16)}"

    def body(self, status: str, output: Sequence[Mapping[str, Any]] = (), **others: Any) -> dict[str, Any]:
        """The response in a state."""
        asked = self._asked
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata,
            "model": asked.model,
            "output": list(output),
            "parallel_tool_calls": False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": asked.store,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
        } | others

    def message(self, status: str, content: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """The one item of its output."""
        return {
            "id": self.item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(content),
        }

    async def finish(self, finished: Finished) -> dict[str, Any]:
        """The whole response, on the disk before anybody has it."""
        usage, complete = finished.usage, finished.answer.complete
        self._request.state.tokens = vars(usage)
        status = "completed" if complete else "incomplete"
        part = text_part(
            finished.answer.text, citations(finished, await run_in_threadpool(self._service.ids))
        )
        body = self.body(
            status,
            [self.message(status, [part])],
            completed_at=time.time(),
            incomplete_details=None if complete else {"reason": "max_output_tokens"},
            usage={
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.completion,
            },
            hiermem=facts(finished),
        )
        if self._asked.store:
            owner = self._request.state.owner
            await run_in_threadpool(self._service.sessions.keep, owner, self._question, body)
        return body


def text_part(text: str, annotations: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The one part of a message."""
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": []}


class _Events:
    """Numbered events of a stream."""

    def __init__(self) -> None:
        self._number = -1

    def __call__(self, kind: str, **facts: Any) -> str:
        self._number += 1
        name = f"response.{kind}"
        return sse({"type": name, "sequence_number": self._number} | facts, name)


async def _streamed(job: Job, made: _Making) -> AsyncIterator[str]:
    event = _Events()
    yield event("created", response=made.body("in_progress"))
    yield event("in_progress", response=made.body("in_progress"))
    yield event("output_item.added", output_index=0, item=made.message("in_progress"))
    place = {"item_id": made.item, "output_index": 0, "content_index": 0}
    yield event("content_part.added", part=text_part(""), **place)
    try:
        async for happened in events_or_silence(job):
            if happened is None:
                yield COMMENT
            elif isinstance(happened, str):
                yield event("output_text.delta", delta=happened, logprobs=[], **place)
            else:
                for piece in _ended(event, await made.finish(happened), place):
                    yield piece
    except Exception as error:
        told = as_api_error(error)
        failure = {"code": "server_error", "message": told.message, "param": told.param}
        yield event("failed", response=made.body("failed", error=failure))


def _ended(event: _Events, response: Mapping[str, Any], place: Mapping[str, Any]) -> list[str]:
    """The events after the last piece of an answer."""
    item = response["output"][0]
    part = item["content"][0]
    added = [
        event("output_text.annotation.added", annotation=annotation, annotation_index=index, **place)
        for index, annotation in enumerate(part["annotations"])
    ]
    return [
        *added,
        event("output_text.done", text=part["text"], logprobs=[], **place),
        event("content_part.done", part=part, **place),
        event("output_item.done", output_index=0, item=item),
        event(response["status"], response=response),
    ]
