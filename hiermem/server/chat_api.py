"""`/v1/chat/completions`: a question and the turns before it, as OpenAI's clients send them."""

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from hiermem.server.bodies import json_body
from hiermem.server.failures import as_api_error, json_response
from hiermem.server.jobs import Finished, Job, Question
from hiermem.server.requests import ChatRequest, conversation
from hiermem.server.service import Service
from hiermem.server.shapes import citations, facts
from hiermem.server.streams import COMMENT, event_stream, events_or_silence, result, sse


def chat_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create(request: Request) -> Response:
        asked = ChatRequest.parse(await json_body(request))
        text, turns = conversation(asked.messages, service.settings.max_question)
        question = Question(
            text,
            turns,
            await run_in_threadpool(service.scope, asked.model, asked.hiermem),
            asked.hiermem.before,
            service.tokens(asked.max_completion_tokens, asked.max_tokens),
            tuple(asked.stop),
            asked.stream,
        )
        job = service.submit(request.state.client, question)
        completion = _Completion(asked.model, asked.stream_options.include_usage)
        if asked.stream:
            return event_stream(_streamed(service, request, job, completion))
        finished = await result(job, request)
        request.state.tokens = vars(finished.usage)
        return json_response(completion.whole(finished, await run_in_threadpool(service.ids)))

    return router


async def _streamed(
    service: Service, request: Request, job: Job, completion: "_Completion"
) -> AsyncIterator[str]:
    yield completion.chunk({"role": "assistant", "content": ""})
    try:
        async for event in events_or_silence(job):
            if event is None:
                yield COMMENT
            elif isinstance(event, str):
                yield completion.chunk({"content": event})
            else:
                request.state.tokens = vars(event.usage)
                ids = await run_in_threadpool(service.ids)
                yield completion.chunk({"annotations": citations(event, ids)}, event)
                if completion.with_usage:
                    yield completion.usage(event)
    except Exception as error:
        yield sse(as_api_error(error).body)
    yield "data: [DONE]\n\n"


class _Completion:
    """The JSON of one chat completion.

    Args:
        with_usage: whether a stream ends with a chunk that counts tokens.
    """

    def __init__(self, model: str, with_usage: bool) -> None:
        self._facts = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }
        self.with_usage = with_usage

    def whole(self, finished: Finished, ids: Mapping[str, str]) -> dict[str, Any]:
        """The completion in one piece."""
        message = {
            "role": "assistant",
            "content": finished.answer.text,
            "refusal": None,
            "annotations": citations(finished, ids),
        }
        choice = {"index": 0, "message": message, "finish_reason": _reason(finished), "logprobs": None}
        return self._facts | {
            "choices": [choice],
            "usage": _usage(finished),
            "hiermem": facts(finished),
        }

    def chunk(self, delta: Mapping[str, Any], finished: Finished | None = None) -> str:
        """A piece of the stream; with the end of the answer, its last one."""
        reason = None if finished is None else _reason(finished)
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        body = self._facts | {"object": "chat.completion.chunk", "choices": [choice]}
        if self.with_usage:
            body["usage"] = None
        if finished is not None:
            body["hiermem"] = facts(finished)
        return sse(body)

    def usage(self, finished: Finished) -> str:
        """A chunk without choices that counts tokens."""
        body = {"object": "chat.completion.chunk", "choices": [], "usage": _usage(finished)}
        return sse(self._facts | body)


def _reason(finished: Finished) -> str:
    return "stop" if finished.answer.complete else "length"


def _usage(finished: Finished) -> dict[str, int]:
    usage = finished.usage
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
