"""The thread that opens uploaded files and has them read, one after the other, from where it was left."""

import threading
from typing import Any

from hiermem.documents import document_of_bytes
from hiermem.errors import HierMemError, MemoryLockedError
from hiermem.server.files import Files
from hiermem.server.logs import log, log_error
from hiermem.server.worker import ReadingStopped, Worker

_AGAIN = 2.0  # seconds until another process may have let go of the library


class Intake:
    """The thread.

    Attributes:
        present: id and name of the file that is being read.
    """

    def __init__(self, files: Files, worker: Worker) -> None:
        self._files, self._worker = files, worker
        self._wake, self._ending = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="hiermem-intake", daemon=True)
        self.present: tuple[str, str] | None = None

    def start(self) -> None:
        """Begin with what waits."""
        self._thread.start()

    def wake(self) -> None:
        """Say that a file has come."""
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """End soon."""
        self._ending = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def progress(self) -> dict[str, float]:
        """Share that was read of the file that is being read, by its id."""
        present, reading = self.present, self._worker.reading
        if present is None:
            return {}
        if reading is None or reading.name != present[1] or not reading.total:
            return {present[0]: 0.0}
        return {present[0]: reading.characters / reading.total}

    def _run(self) -> None:
        while not self._ending:
            self._wake.clear()
            try:
                self.present = self._files.next()
                if self.present is not None:
                    self._take(*self.present)
                    continue
            except Exception as error:  # the disk is full, or the file of the queue is gone
                log_error("intake_failed", error)
                self._pause()
                continue
            self._wake.wait()

    def _take(self, identity: str, name: str) -> None:
        path = self._files.path(identity)
        try:
            document = document_of_bytes(name, path.read_bytes())
            self._files.begun(identity)
            added = self._worker.read(document).result()
        except ReadingStopped:
            return  # the service ends, or the file was deleted
        except MemoryLockedError:
            self._pause()
        except HierMemError as error:
            self._files.fail(identity, str(error))
            log("file_failed", file=identity, error=type(error).__name__)
        except Exception as error:
            log_error("file_failed", error, file=identity)
            self._files.fail(identity, "This file could not be read: the service's log says more.")
        else:
            self._done(identity, added)
        finally:
            self.present = None

    def _done(self, identity: str, added: Any) -> None:
        if self._files.path(identity).exists():
            self._files.done(identity, added.entry.id)
            log("file_read", file=identity, outcome=added.outcome, tokens=added.entry.tokens)
        else:  # deleted while its last chunk was read
            self._worker.remove(added.name).result()

    def _pause(self) -> None:
        self._wake.wait(_AGAIN)
