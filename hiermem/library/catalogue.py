"""The catalogue of a library: which documents there are, in one SQLite file.

A document is there from the moment that its row is committed until that row is gone; its files come before
and go after. Rows that go are overwritten on the disk.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryMissingError,
    MemoryTooNewError,
)
from hiermem.library.entries import DocumentEntry
from hiermem.retrieval.regular_files import NotPlainError, check_plain
from hiermem.transactions import transaction

CATALOGUE = "library.sqlite3"

VERSION = 1
"""Of the layout of a library's folder."""

_WAIT = 30.0  # seconds for another process to end its transaction
_FOLDER = re.compile(r"[0-9a-f]{32}")
_COLUMNS = [field.name for field in fields(DocumentEntry)]
_TABLES = {
    "settings": "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "documents": (
        "CREATE TABLE documents (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, "
        "kind TEXT NOT NULL, sha256 TEXT NOT NULL, tokens INTEGER NOT NULL, segments INTEGER NOT NULL, "
        "characters INTEGER NOT NULL, pages INTEGER NOT NULL, bytes INTEGER NOT NULL, added REAL NOT NULL, "
        "folder TEXT NOT NULL UNIQUE, source TEXT NOT NULL)"
    ),
}


@contextmanager
def plainly_of(path: Path) -> Iterator[None]:
    """Turn errors of an SQLite file into sentences.

    Raises:
        MemoryFileError: it cannot be used.
        MemoryCorruptError: it is damaged.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise MemoryFileError(
            f"The file {path} cannot be used ({error}): check the disk's space and the permissions, then try "
            f"again."
        ) from error
    except sqlite3.DatabaseError as error:
        raise MemoryCorruptError(
            f"The file {path} is damaged ({error}): restore the library from a copy."
        ) from error


def is_folder(path: Path) -> bool:
    """Whether a folder is one that a document of a library may have: a real one, of such a name."""
    return bool(_FOLDER.fullmatch(path.name)) and not path.is_symlink() and path.is_dir()


def is_library(path: Path) -> bool:
    """Whether a folder holds a library."""
    return (path / CATALOGUE).is_file()


class Catalogue:
    """The documents of a library; several threads may use it.

    Args:
        folder: of the library.

    Raises:
        MemoryMissingError: there is no library.
        MemoryCorruptError: the file is damaged, or not such a catalogue.
        MemoryTooNewError: it is of a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / CATALOGUE, threading.RLock()
        try:
            check_plain(self._path)
        except NotPlainError as kind:
            raise MemoryCorruptError(f"{self._path} is {kind}, not a plain file: remove it.") from None
        except OSError:
            raise MemoryMissingError(
                f"There is no library at {folder}: check the path, or add a document to make one."
            ) from None
        with self._plainly():
            self._connection = self._connect()
            self._check_layout(folder)

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any]) -> None:
        """Make a new one, with the library's settings, which never change; the caller is the only writer.

        Raises:
            MemoryFileError: the disk refused.
        """
        new = folder / f"{CATALOGUE}.new"
        new.unlink(missing_ok=True)
        with plainly_of(new), closing(sqlite3.connect(new, isolation_level=None)) as connection:
            for table in _TABLES.values():
                connection.execute(table)
            connection.execute("INSERT INTO settings VALUES ('settings', ?)", (json.dumps(settings),))
            connection.execute(f"PRAGMA user_version = {VERSION}")
        new.rename(folder / CATALOGUE)

    def _connect(self) -> sqlite3.Connection:
        address = f"{self._path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            address, timeout=_WAIT, isolation_level=None, uri=True, check_same_thread=False
        )
        # A stranger's file: its schema runs nothing. What is deleted is overwritten.
        for pragma in ("trusted_schema = OFF", "secure_delete = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _check_layout(self, folder: Path) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise MemoryTooNewError(
                f"The library at {folder} is in format {version} and this version reads up to format "
                f"{VERSION}; upgrade hiermem."
            )
        found = self._connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        if version < 1 or dict(found.fetchall()) != _TABLES:
            raise MemoryCorruptError(f"{self._path} is no catalogue of a library: restore it from a copy.")

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        with plainly_of(self._path), self._lock:
            yield

    @property
    def settings(self) -> Any:
        """The library's settings, as they were given."""
        with self._plainly():
            row = self._connection.execute("SELECT value FROM settings WHERE name = 'settings'").fetchone()
        try:
            return json.loads(row[0])
        except (TypeError, ValueError, RecursionError) as error:
            raise MemoryCorruptError(f"The catalogue {self._path} has no settings: restore it.") from error

    @property
    def version(self) -> int:
        """A number that changes when another process has changed the catalogue."""
        with self._plainly():
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def documents(self) -> list[DocumentEntry]:
        """All documents, in the order in which they came.

        Raises:
            MemoryCorruptError: a row is not as this library writes it.
        """
        with self._plainly():
            rows = self._connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM documents ORDER BY id")
            entries = [DocumentEntry(*row) for row in rows.fetchall()]
        for entry in entries:
            self._check(entry)
        return entries

    def _check(self, entry: DocumentEntry) -> None:
        whole = (entry.id, entry.tokens, entry.segments, entry.characters, entry.pages, entry.bytes)
        texts = (entry.name, entry.kind, entry.sha256, entry.folder, entry.source)
        typed = all(type(number) is int and number >= 0 for number in whole) and all(
            isinstance(text, str) for text in texts
        )
        if not typed or not _FOLDER.fullmatch(entry.folder):
            raise MemoryCorruptError(
                f"The catalogue {self._path} does not make sense: restore the library from a copy."
            )

    def document(self, name: str) -> DocumentEntry:
        """The document of a name.

        Raises:
            InputError: there is none.
        """
        if (found := self.find(name)) is None:
            raise InputError(f"There is no document {name!r} in the library: hiermem list shows all.")
        return found

    def find(self, name: str) -> DocumentEntry | None:
        """The document of a name; None: there is none."""
        with self._plainly():
            query = f"SELECT {', '.join(_COLUMNS)} FROM documents WHERE name = ?"
            rows = self._connection.execute(query, (name,)).fetchall()
        entries = [DocumentEntry(*row) for row in rows]
        for entry in entries:
            self._check(entry)
        return entries[0] if entries else None

    def put(self, entry: DocumentEntry) -> DocumentEntry:
        """Commit a document, in place of one of the same name; with its number, whatever ``entry`` had."""
        values = {name: value for name, value in asdict(entry).items() if name != "id"}
        marks = ", ".join("?" * len(values))
        with self._plainly(), transaction(self._connection):
            self._connection.execute("DELETE FROM documents WHERE name = ?", (entry.name,))
            self._connection.execute(
                f"INSERT INTO documents ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
            )
        return self.document(entry.name)

    def remove(self, name: str) -> None:
        """Commit that a document is gone."""
        with self._plainly(), transaction(self._connection):
            self._connection.execute("DELETE FROM documents WHERE name = ?", (name,))

    def problems(self) -> list[str]:
        """Every damage that SQLite finds in the file, as plain sentences."""
        try:
            with self._plainly():
                found = self._connection.execute("PRAGMA integrity_check").fetchall()
        except MemoryCorruptError as error:
            return [str(error)]
        return [f"The catalogue {self._path} is damaged ({row[0]})." for row in found if row[0] != "ok"]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
