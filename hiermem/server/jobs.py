"""Jobs of the model, and the queue in which they wait: clients take turns."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from hiermem.answer import Answer
from hiermem.chat import Turn
from hiermem.server.failures import Busy

RETRY = 5
"""Seconds after which whoever was refused may try again."""


@dataclass(frozen=True)
class Usage:
    """Tokens of an answer.

    Attributes:
        prompt: of the question, earlier ones that count, and the passages before them.
        completion: of the answer.
    """

    prompt: int
    completion: int


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Attributes:
        waited: seconds before it began.
    """

    answer: Answer
    usage: Usage
    waited: float


Event = str | Finished
"""A piece of an answer's text, or its end."""


class Channel:
    """Events from the model's thread to a coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = False

    def send(self, event: Any) -> None:
        """Send an event, or an error that ends it, from any thread; dropped where nobody waits any more."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def receive(self) -> Any:
        """The next event.

        Raises:
            BaseException: the error that ended it.
        """
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    def cancel(self) -> None:
        """Say that nobody waits any more."""
        self.cancelled = True


@dataclass(frozen=True)
class Question:
    """A question as a client asks it.

    Attributes:
        text: of the question.
        turns: earlier ones.
        documents: names of those that it is about; empty: all.
        before_page: only pages before that one.
        max_new_tokens: limit of the answer.
        stop: texts that end the answer.
        stream: whether pieces are wanted as they come.
    """

    text: str
    turns: tuple[Turn, ...] = ()
    documents: tuple[str, ...] = ()
    before_page: int | None = None
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    stream: bool = False

    @property
    def together(self) -> tuple[Any, ...] | None:
        """A key that questions share which can be answered in one batch; None: it is answered alone."""
        if self.stream or self.turns:
            return None
        return self.documents, self.before_page, self.max_new_tokens


@dataclass(eq=False)
class Job:
    """Something for the model to do for a client.

    Attributes:
        client: who waits for it.
        question: to be answered; None: ``call`` is to be called.
        call: gives the one event, in place of a question.
    """

    client: str
    question: Question | None = None
    call: Callable[[], Any] | None = None
    channel: Channel = field(default_factory=Channel)
    asked: float = field(default_factory=time.monotonic)

    async def events(self) -> AsyncIterator[Event]:
        """All events of an answer; whoever stops half way cancels it."""
        try:
            while True:
                event = await self.channel.receive()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.channel.cancel()

    async def result(self) -> Any:
        """The last event; whoever stops waiting cancels the job."""
        try:
            while isinstance(event := await self.channel.receive(), str):
                pass
            return event
        finally:
            self.channel.cancel()


class FairQueue:
    """Jobs by client; clients take turns, one job each. The owner holds a lock.

    Args:
        most: jobs that wait. Where it is full, the client with the most gives way to one with fewer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def clients(self) -> list[str]:
        """Clients that wait, in the order of their turns."""
        return list(self._waiting)

    def put(self, job: Job) -> None:
        """Let a job wait.

        Raises:
            Busy: the queue is full, and no client has more in it than this one.
        """
        self._drop_cancelled()
        if len(self) >= self._most:
            longest = max(self._waiting, key=lambda client: len(self._waiting[client]))
            own = len(self._waiting.get(job.client, ()))
            if len(self._waiting[longest]) <= own + 1:
                raise Busy(RETRY)
            self._pop(longest, last=True).channel.send(Busy(RETRY))
        self._waiting.setdefault(job.client, deque()).append(job)

    def take(self) -> Job | None:
        """The first job of the client whose turn it is; None: nobody waits."""
        self._drop_cancelled()
        if not self._waiting:
            return None
        client = next(iter(self._waiting))
        job = self._pop(client)
        if client in self._waiting:
            self._waiting.move_to_end(client)
        return job

    def take_with(self, job: Job, most: int) -> list[Job]:
        """Further jobs that can be done together with one: the first of each client, in turn."""
        key = job.question and job.question.together
        found: list[Job] = []
        for client in self.clients if key else ():
            first = self._waiting[client][0]
            if len(found) < most and first.question and first.question.together == key:
                found.append(self._pop(client))
                if client in self._waiting:
                    self._waiting.move_to_end(client)
        return found

    def _pop(self, client: str, last: bool = False) -> Job:
        jobs = self._waiting[client]
        job = jobs.pop() if last else jobs.popleft()
        if not jobs:
            del self._waiting[client]
        return job

    def _drop_cancelled(self) -> None:
        for client in self.clients:
            jobs = deque(job for job in self._waiting[client] if not job.channel.cancelled)
            if jobs:
                self._waiting[client] = jobs
            else:
                del self._waiting[client]
