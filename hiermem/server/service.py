"""All parts of the service together, as the requests' handlers use them."""

import threading
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hiermem.errors import HierMemError, MemoryLockedError
from hiermem.library import DocumentEntry, Library
from hiermem.memory.places import Places
from hiermem.model import HierMemModel
from hiermem.server.database import Database
from hiermem.server.failures import ApiError, missing, wrong
from hiermem.server.files import DONE, Files, StoredFile
from hiermem.server.intake import Intake
from hiermem.server.jobs import Job, Question
from hiermem.server.metrics import Metrics
from hiermem.server.requests import MODEL, Scope
from hiermem.server.sessions import Sessions
from hiermem.server.settings import ServerSettings
from hiermem.server.worker import LOADING, Worker

FOLDER = "server"
"""The service's own folder, in that of the library."""

_TOKENS = 64  # of an answer where a client does not say


class Service:
    """A library in service.

    Args:
        load: makes the model, in the thread that will own it.
        path: of the library; made where there is none.
        index: of a new library; see `Library.open`.
        on_failure: called where the model or the library cannot be loaded.

    Attributes:
        worker: owns the model.
        metrics: of this service.
        settings: of this service.
    """

    def __init__(
        self,
        load: Callable[[], HierMemModel],
        path: Path,
        settings: ServerSettings,
        index: bool | None = None,
        on_failure: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self.settings, self.metrics, self.name = settings, Metrics(), path.resolve().name
        self.worker = Worker(load, path, index, settings, self.metrics)
        self.worker.on_ready, self.worker.on_failure = self._open, on_failure
        self._folder, self._shelf_lock = path / FOLDER, threading.Lock()
        self._shelf: Library | None = None
        self._database: Database | None = None
        self._lock: FileLock | None = None
        self._texts: tuple[int, str] = (-1, "")

    def start(self) -> None:
        """Load the model, then go on with what waits to be read."""
        self.worker.start()

    def stop(self) -> None:
        """Keep all, and end."""
        self.worker.stop(self.settings.end_seconds)
        if self._database is not None:
            self.intake.stop(self.settings.end_seconds)
            self._database.close()
        if self._shelf is not None:
            self._shelf.close()
        if self._lock is not None:
            self._lock.release()

    def _open(self, library: Library, model: HierMemModel) -> None:
        """Open the service's own files; in the model's thread."""
        self._folder.mkdir(exist_ok=True)
        lock = FileLock(self._folder / ".lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise MemoryLockedError(
                f"Another service has the library at {library.path}: end it first."
            ) from None
        self._lock = lock
        database = Database(self._folder)
        self.files = Files(database, self._folder / "uploads")
        self.sessions = Sessions(database, self.settings.max_stored)
        self.sessions.keep_only([entry.name for entry in library.documents()])
        self.intake = Intake(self.files, self.worker)
        # Its texts can be looked at while the model answers from the other one.
        self._shelf = Library.open(library.path, model, writes=False)
        self._database = database
        self.count_documents()
        self.intake.start()

    # ---- documents

    def check_open(self) -> None:
        """Refuse what comes too early.

        Raises:
            ApiError: the library is not open yet, or no more.
        """
        self.worker.check_ready()

    def entries(self) -> list[DocumentEntry]:
        """All documents of the library."""
        self.check_open()
        assert self._shelf is not None
        return self._shelf.documents()

    def all_files(self) -> list[StoredFile]:
        """All documents and all uploads."""
        entries = self.entries()
        return self.files.all(entries, self.intake.progress())

    def count_documents(self) -> None:
        """Bring the measurements of documents up to date."""
        if self._shelf is None:
            return
        files = self.files.all(self._shelf.documents(), {})
        for state in ("done", "waiting", "failed"):
            self.metrics.documents.labels(state).set(sum(file.state == state for file in files))

    def file(self, identity: str) -> StoredFile:
        """A file.

        Raises:
            ApiError: there is none.
        """
        for file in self.all_files():
            if file.id == identity:
                return file
        raise missing("There is no such file.", "file_not_found", "file_id")

    def remove(self, identity: str) -> None:
        """Remove a document or an upload; nothing of it stays.

        Raises:
            ApiError: there is none.
        """
        file = self.file(identity)
        if file.entry is None:
            self.files.forget(identity)
            self.worker.drop(file.name)
            self._remove_unfinished(file.name)
        else:
            self.worker.remove(file.name).result(self.settings.answer_seconds)
            self.files.forget(identity)
            self.sessions.keep_only([entry.name for entry in self.entries()])

    def _remove_unfinished(self, name: str) -> None:
        """Remove what was read of a document that was never finished; one of that name that was stays."""

        def change(library: Library) -> None:
            if name in library.unfinished() and name not in {entry.name for entry in library.documents()}:
                library.remove(name)

        self.worker.call(change).result(self.settings.answer_seconds)

    def text(self, file: StoredFile) -> tuple[str, Places]:
        """The text of a document, and its pages and chapters.

        Raises:
            ApiError: it was not read yet.
        """
        if file.entry is None:
            raise ApiError(409, "This file was not read yet: try again later.", "not_read")
        with self._shelf_lock:
            assert self._shelf is not None
            try:
                if self._texts[0] != file.entry.id:
                    self._texts = file.entry.id, self._shelf.text(file.name)
                return self._texts[1], self._shelf.places(file.name)
            except (HierMemError, KeyError) as error:  # it has just been removed
                raise missing("There is no such file.", "file_not_found", "file_id") from error

    # ---- questions

    def scope(self, model: str, scope: Scope) -> tuple[str, ...]:
        """Names of the documents that a model's name and the extension of a request stand for.

        Raises:
            ApiError: there are no such, or both name some.
        """
        names = {entry.name for entry in self.entries()}
        if model != MODEL:
            _, slash, name = model.partition(f"{MODEL}/")
            if _ or not slash or name not in names:
                raise missing(
                    f"There is no such model: {MODEL} is the whole library, {MODEL}/NAME one document.",
                    "model_not_found",
                    "model",
                )
            if scope.documents:
                raise wrong(f"Give documents with the model {MODEL} only.", "hiermem.documents")
            return (name,)
        if set(scope.documents) - names:
            raise missing("There is no such document.", "document_not_found", "hiermem.documents")
        return tuple(scope.documents)

    def tokens(self, *asked: int | None) -> int:
        """The limit of an answer: what a client asks for, but no more than there may be."""
        given = [number for number in asked if number is not None] or [_TOKENS]
        return min(*given, self.settings.max_new_tokens)

    def submit(self, client: str, question: Question) -> Job:
        """Let a question wait for its turn; see `Worker.submit`."""
        job = Job(client, question)
        self.worker.submit(job)
        return job

    def ids(self) -> dict[str, str]:
        """Ids of files, by the names of their documents."""
        return {file.name: file.id for file in self.all_files() if file.state == DONE}

    @property
    def is_loading(self) -> bool:
        """Whether the model is being loaded."""
        return self.worker.state == LOADING
