"""The service's SQLite file, in the library's folder: conversations and uploads. A kill loses no commit."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiermem.errors import MemoryCorruptError, MemoryFileError, MemoryTooNewError
from hiermem.transactions import transaction

VERSION = 1
"""Of the tables."""

_FILE = "server.sqlite3"
_TABLES = (
    "CREATE TABLE responses (id TEXT PRIMARY KEY, previous TEXT, owner TEXT NOT NULL, created REAL NOT NULL, "
    "question TEXT NOT NULL, body TEXT NOT NULL)",
    "CREATE INDEX responses_by_age ON responses (created)",
    "CREATE TABLE files (id TEXT PRIMARY KEY, name TEXT NOT NULL, bytes INTEGER NOT NULL, "
    "created REAL NOT NULL, purpose TEXT NOT NULL, state TEXT NOT NULL, error TEXT NOT NULL, "
    "document INTEGER, attempts INTEGER NOT NULL)",
)


class Database:
    """The file, for several threads.

    Args:
        folder: that it is in; made where it is missing.

    Raises:
        MemoryCorruptError, MemoryTooNewError, MemoryFileError: it cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / _FILE, threading.RLock()
        if self._path.is_symlink():
            raise MemoryCorruptError(f"{self._path} is a link, not a plain file: remove it.")
        with self._plainly():
            self._connection = sqlite3.connect(
                self._path, 30.0, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            for pragma in (
                "trusted_schema = OFF",
                "journal_mode = DELETE",  # what is deleted leaves no trace in a log
                "synchronous = FULL",
                "secure_delete = ON",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            self._make()

    def _make(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise MemoryTooNewError(f"{self._path} is of a newer version: upgrade hiermem.")
        if version < VERSION:
            with transaction(self._connection):
                for table in _TABLES:
                    self._connection.execute(table)
                self._connection.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise MemoryFileError(
                f"The file {self._path} cannot be used ({error}): check the disk's space and the permissions."
            ) from error
        except sqlite3.DatabaseError as error:
            raise MemoryCorruptError(
                f"The file {self._path} is damaged ({error}): remove it; the documents stay."
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all or nothing of what is done meanwhile."""
        with self._lock, self._plainly(), transaction(self._connection):
            yield

    def change(self, statement: str, *values: Any) -> int:
        """Run a statement; how many rows it has changed."""
        with self._lock, self._plainly():
            return self._connection.execute(statement, values).rowcount

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """The rows that a statement finds."""
        with self._lock, self._plainly():
            return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
