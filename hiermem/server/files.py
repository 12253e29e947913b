"""Uploaded files: what is accepted is on the disk before the client hears of it, and is read in its turn."""

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiermem.library import DocumentEntry
from hiermem.retrieval.disk import sync_folder
from hiermem.server.database import Database

ATTEMPTS = 5
"""How often a file may be opened in vain: one that ends the process would do so for ever."""

WAITING, READING, DONE, FAILED = "waiting", "reading", "done", "failed"

_OF_DOCUMENT = "file-d"


@dataclass(frozen=True)
class StoredFile:
    """An uploaded file, or a document that came another way.

    Attributes:
        id: its name for programs.
        name: of the document.
        bytes: of the file, or that the document takes on the disk.
        created: in seconds since 1970.
        purpose: as the client gave it.
        state: waiting, reading, done or failed.
        error: why it failed, in a sentence.
        progress: share that was read, in 0..1.
        entry: the document; None: it was not read yet.
    """

    id: str
    name: str
    bytes: int
    created: float
    purpose: str = "user_data"
    state: str = DONE
    error: str = ""
    progress: float = 1.0
    entry: DocumentEntry | None = None


class Files:
    """Uploaded files of a library.

    Args:
        folder: for those that wait.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder
        folder.mkdir(exist_ok=True)
        known = {row["id"] for row in database.rows("SELECT id FROM files WHERE state = ?", WAITING)}
        for file in folder.iterdir():  # what a killed service had not accepted, or had read
            if file.name not in known:
                file.unlink(missing_ok=True)

    def new(self) -> tuple[str, Path]:
        """A new id, and where its bytes are to be written."""
        identity = f"file-{secrets.token_hex(12)}"
        return identity, self._folder / f"{identity}.part"

    def accept(self, identity: str, part: Path, name: str, purpose: str, bytes_: int) -> StoredFile:
        """Commit an upload whose bytes are on the disk."""
        part.rename(self.path(identity))
        sync_folder(self._folder)
        created = time.time()
        self._database.change(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, '', NULL, 0)",
            identity,
            name,
            bytes_,
            created,
            purpose,
            WAITING,
        )
        return StoredFile(identity, name, bytes_, created, purpose, WAITING, "", 0.0)

    def path(self, identity: str) -> Path:
        """Where the bytes of an upload are while it waits."""
        return self._folder / identity

    def next(self) -> tuple[str, str] | None:
        """Id and name of the file whose turn it is, with one attempt more; None: none waits."""
        rows = self._database.rows(
            "SELECT id, name, attempts FROM files WHERE state = ? ORDER BY created, rowid LIMIT 1", WAITING
        )
        if not rows:
            return None
        if rows[0]["attempts"] >= ATTEMPTS:
            self.fail(rows[0]["id"], "The service ended whenever it opened this file: give another one.")
            return self.next()
        self._database.change("UPDATE files SET attempts = attempts + 1 WHERE id = ?", rows[0]["id"])
        return rows[0]["id"], rows[0]["name"]

    def begun(self, identity: str) -> None:
        """Note that a file can be opened."""
        self._database.change("UPDATE files SET attempts = 0 WHERE id = ?", identity)

    def done(self, identity: str, document: int) -> None:
        """Commit that a file was read; rows of documents whose place it took go."""
        with self._database.transaction():
            self._database.change("DELETE FROM files WHERE document = ? AND id != ?", document, identity)
            self._database.change(
                "UPDATE files SET state = ?, document = ? WHERE id = ?", DONE, document, identity
            )
        self.path(identity).unlink(missing_ok=True)

    def fail(self, identity: str, sentence: str) -> None:
        """Commit that a file cannot be read."""
        self._database.change(
            "UPDATE files SET state = ?, error = ? WHERE id = ? AND state = ?",
            FAILED,
            sentence,
            identity,
            WAITING,
        )
        self.path(identity).unlink(missing_ok=True)

    def forget(self, identity: str) -> None:
        """Delete an upload, with what is left of its bytes."""
        self._database.change("DELETE FROM files WHERE id = ?", identity)
        with suppress(OSError):
            self.path(identity).unlink(missing_ok=True)

    def all(self, entries: Sequence[DocumentEntry], progress: Mapping[str, float]) -> list[StoredFile]:
        """All documents, then what waits, then what failed.

        Args:
            entries: the documents of the library.
            progress: share that was read, by id, of what is being read.
        """
        rows = self._database.rows("SELECT * FROM files ORDER BY created, rowid")
        of_entry = {row["document"]: row for row in rows if row["state"] == DONE}
        found = [_document(entry, of_entry.get(entry.id)) for entry in entries]
        found += [_waiting(row, progress) for row in rows if row["state"] == WAITING]
        return found + [_waiting(row, progress) for row in rows if row["state"] == FAILED]


def _document(entry: DocumentEntry, row: Any) -> StoredFile:
    if row is None:
        return StoredFile(f"{_OF_DOCUMENT}{entry.id}", entry.name, entry.bytes, entry.added, entry=entry)
    return StoredFile(row["id"], entry.name, row["bytes"], row["created"], row["purpose"], entry=entry)


def _waiting(row: Any, progress: Mapping[str, float]) -> StoredFile:
    state = READING if row["id"] in progress and row["state"] == WAITING else row["state"]
    share = progress.get(row["id"], 0.0)
    return StoredFile(
        row["id"], row["name"], row["bytes"], row["created"], row["purpose"], state, row["error"], share
    )
