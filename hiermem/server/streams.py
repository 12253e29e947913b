"""Answers on their way to a client: as server-sent events, or whole, and given up where the client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from starlette.responses import StreamingResponse

from hiermem.server.failures import ApiError, as_api_error
from hiermem.server.jobs import Event, Job

_SILENCE = 10.0  # seconds after which a comment shows that the connection lives


def sse(data: Any, event: str | None = None) -> str:
    """One server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, allow_nan=False)}\n\n"


def event_stream(pieces: AsyncIterator[str]) -> StreamingResponse:
    """A response of server-sent events."""
    return StreamingResponse(
        pieces,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def events_or_silence(job: Job) -> AsyncIterator[Event | None]:
    """The events of a job, and None now and then while it waits."""
    events = job.events()
    ahead: asyncio.Future[Event] | None = None
    try:
        while True:
            ahead = ahead or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([ahead], timeout=_SILENCE)
            if not done:
                yield None
                continue
            try:
                event = ahead.result()
            except StopAsyncIteration:
                return
            ahead = None
            yield event
    finally:
        job.channel.cancel()
        if ahead is not None:
            ahead.cancel()


COMMENT = ": waiting\n\n"
"""Fields that a client leaves out."""


async def result(job: Job, request: Request) -> Any:
    """The end of a job; it is given up where the client leaves.

    Raises:
        ApiError: it failed, or the client has left.
    """
    ended, left = asyncio.ensure_future(job.result()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([ended, left], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            raise ApiError(499, "The client has left.", "cancelled")
        return ended.result()
    except ApiError:
        raise
    except Exception as error:
        raise as_api_error(error) from error
    finally:
        job.channel.cancel()
        ended.cancel()
        left.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
