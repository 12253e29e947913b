"""The one thread that owns the model: questions first, by turns, and documents in between.

The reading of a document is in chunks. After each, every client that waits gets one answer, and then the next
chunk is read: a long document delays a question by a chunk, and many questions do not keep a document from
being read.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from hiermem.documents import Document
from hiermem.errors import HierMemError
from hiermem.library import Added, Library, Reading
from hiermem.model import HierMemModel
from hiermem.server.asked import Asker, refuse
from hiermem.server.failures import ApiError, Busy
from hiermem.server.jobs import RETRY, FairQueue, Job
from hiermem.server.logs import log, log_error
from hiermem.server.metrics import Metrics
from hiermem.server.settings import ServerSettings

LOADING, READY, FAILED, ENDING = "loading", "ready", "failed", "ending"


class ReadingStopped(BaseException):
    """A document's reading is to be stopped; it can be gone on with."""


class Worker:
    """The thread.

    Args:
        load: makes the model.
        path: of the library.
        index: of a new library; see `Library.open`.

    Attributes:
        state: loading, ready, failed or ending.
        error: why it failed.
        reading: how far the present document was read.
        on_ready: called in the thread when the library is open.
        on_failure: called where it cannot be opened.
    """

    def __init__(
        self,
        load: Callable[[], HierMemModel],
        path: Path,
        index: bool | None,
        settings: ServerSettings,
        metrics: Metrics,
    ) -> None:
        self._load, self._path, self._index = load, path, index
        self._settings, self._metrics = settings, metrics
        self._changed = threading.Condition()
        self._queue = FairQueue(settings.max_queue)
        self._calls: deque[tuple[Callable[[Library], Any], Future[Any]]] = deque()
        self._document: tuple[Document, Future[Added]] | None = None
        self._dropped: str | None = None
        self._thread = threading.Thread(target=self._run, name="hiermem-model", daemon=True)
        self.state, self.error = LOADING, ""
        self.reading: Reading | None = None
        self.on_ready: Callable[[Library, HierMemModel], None] = lambda *_: None
        self.on_failure: Callable[[BaseException], None] = lambda _: None

    # ---- for other threads

    def start(self) -> None:
        """Load the model and begin."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End soon: keep what was read of a document, refuse what waits."""
        with self._changed:
            self.state = ENDING
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    @property
    def waiting(self) -> int:
        """Questions that wait."""
        with self._changed:
            return len(self._queue)

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            ApiError: the service does not answer now, or the queue is full.
        """
        with self._changed:
            self.check_ready()
            self._queue.put(job)
            self._metrics.waiting.set(len(self._queue))
            self._changed.notify_all()

    def check_ready(self) -> None:
        """Refuse what comes before the model is there, or when the service ends.

        Raises:
            ApiError: so it is.
        """
        if self.state == LOADING:
            raise Busy(RETRY, "The model is loading: try again in a moment.")
        if self.state != READY:
            raise ApiError(503, "The service ends: try again later.", "ending", headers={"Retry-After": "10"})

    def read(self, document: Document) -> "Future[Added]":
        """Let a document be read, after the one that is being read."""
        future: Future[Added] = Future()
        with self._changed:
            self._changed.wait_for(lambda: self._document is None or self.state != READY)
            if self.state != READY:
                future.set_exception(ReadingStopped())
            else:
                self._document = document, future
                self._changed.notify_all()
        return future

    def call(self, change: Callable[[Library], Any]) -> "Future[Any]":
        """Do something with the library before the next question."""
        future: Future[Any] = Future()
        with self._changed:
            self.check_ready()
            self._calls.append((change, future))
            self._changed.notify_all()
        return future

    def remove(self, name: str) -> "Future[None]":
        """Remove a document, whose reading is stopped if it is being read."""

        def change(library: Library) -> None:
            library.remove(name)

        self.drop(name)
        return self.call(change)

    def drop(self, name: str) -> None:
        """Stop the reading of a document, if it is being read."""
        with self._changed:
            if self.reading is not None and self.reading.name == name:
                self._dropped = name

    # ---- the thread itself

    def _run(self) -> None:
        try:
            model = self._load()
            library = Library.open(self._path, model, index=self._index)
            self.on_ready(library, model)
        except BaseException as error:
            self.state, self.error = FAILED, str(error) if isinstance(error, HierMemError) else "failed"
            log_error("not_ready", error)
            self.on_failure(error)
            return
        asker = Asker(
            library, model, self._metrics, self._settings.answer_seconds, lambda: self.state == ENDING
        )
        with self._changed:
            if self.state == LOADING:
                self.state = READY
                self._metrics.ready.set(1)
        log("ready", documents=len(library))
        while self._await_work():
            self._round(library, asker)
            self._read(library, asker)
        self._end()
        library.close()

    def _await_work(self) -> bool:
        """Wait until there is something to do; whether the thread goes on."""

        def is_due() -> bool:
            return bool(self.state != READY or self._calls or len(self._queue) or self._document is not None)

        with self._changed:
            self._changed.wait_for(is_due)
            return self.state == READY

    def _round(self, library: Library, asker: Asker) -> None:
        """Do all calls, and one job for every client that waits now."""
        with self._changed:
            clients = len(self._queue.clients)
        while clients > 0 and self.state == READY:
            self._do_calls(library)
            jobs = self._take()
            if not jobs:
                break
            asker.run(jobs)
            clients -= len(jobs)
        self._do_calls(library)

    def _take(self) -> list[Job]:
        with self._changed:
            job = self._queue.take()
            jobs = [] if job is None else [job, *self._queue.take_with(job, self._settings.max_batch - 1)]
            self._metrics.waiting.set(len(self._queue))
        return jobs

    def _do_calls(self, library: Library) -> None:
        """Do what was called for, but not before a reading has ended that is to be stopped for it."""
        while self._calls and self._dropped is None:
            change, future = self._calls.popleft()
            try:
                future.set_result(change(library))
            except Exception as error:
                future.set_exception(error)

    def _read(self, library: Library, asker: Asker) -> None:
        """Read the document that waits, if there is one; questions are answered between chunks."""
        with self._changed:
            if self._document is None or self.state != READY:
                return
            document, future = self._document
            self.reading = Reading(document.name, 0, len(document.text))

        def on_reading(reading: Reading) -> None:
            before, self.reading = self.reading, reading
            if before is not None:
                self._metrics.characters.inc(max(reading.characters - before.characters, 0))
            self._round(library, asker)
            if self.state != READY or self._dropped is not None:
                raise ReadingStopped

        try:
            future.set_result(library.add_document(document, progress=False, on_reading=on_reading))
        except BaseException as error:
            future.set_exception(error)
        finally:
            with self._changed:
                self._document = self.reading = self._dropped = None
                self._changed.notify_all()

    def _end(self) -> None:
        """Refuse what still waits."""
        with self._changed:
            error = ApiError(503, "The service ends: try again later.", "ending")
            while (job := self._queue.take()) is not None:
                refuse(job, error)
            for _, future in self._calls:
                future.set_exception(error)
            if self._document is not None:
                self._document[1].set_exception(ReadingStopped())
            self._metrics.ready.set(0)
