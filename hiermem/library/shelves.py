"""The files of a library's documents: made aside, put into place by one rename and one commit, and removed.

    LIBRARY/library.sqlite3      which documents there are
    LIBRARY/documents/ID/        of each: memory/, as `MemoryState.save` writes it, and index.safetensors
    LIBRARY/incoming/NAME-TEXT/  of a document whose reading was stopped, or goes on

A folder of documents that no row of the catalogue names was left by a process that was killed, or is of a
document that was removed: the next writer removes it.
"""

import hashlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hiermem.documents import Document
from hiermem.errors import InputError, MemoryMissingError
from hiermem.library.catalogue import CATALOGUE, Catalogue, is_library
from hiermem.library.document_index import INDEX, index_digest, write_index
from hiermem.library.entries import Added, DocumentEntry
from hiermem.library.files import checked_name
from hiermem.memory.saved import check_replaced
from hiermem.memory.state import MemoryState
from hiermem.retrieval.disk import sha256_of, sync_folder
from hiermem.retrieval.files import load_directory, save_directory, writer_lock
from hiermem.retrieval.manifest import plainly

MEMORY = "memory"
"""Folder of a document's memory within its own."""

_DOCUMENTS, _INCOMING, _NAME, _DIGEST = "documents", "incoming", "name", "index.sha256"

Stage = Callable[[Document, Path], "Size"]
"""Makes the files of a document in a folder, in which that may have begun before (`staged`)."""


@dataclass(frozen=True)
class Size:
    """Sizes of a document that was read."""

    tokens: int
    segments: int
    characters: int


def staged(memory: MemoryState, folder: Path) -> Size:
    """Write what a document's folder has beside its saved memory."""
    write_index(folder, memory)
    (folder / _DIGEST).write_text(index_digest(folder), encoding="ascii")
    return Size(memory.tokens, memory.segments, memory.characters)


def make_library(path: Path, settings: dict[str, Any]) -> None:
    """Make the folder of a new library, unless another process has just done so.

    Raises:
        InputError: there are other things.
        MemoryLockedError: another process is writing there.
        MemoryFileError: the disk refused.
    """
    check_place(path)
    with plainly(f"A library cannot be made at {path}"):
        path.mkdir(parents=True, exist_ok=True)
        with writer_lock(path):
            if is_library(path):
                return
            for folder in (path / _DOCUMENTS, path / _INCOMING):
                folder.mkdir(exist_ok=True)
            Catalogue.create(path, settings)
            sync_folder(path)
            sync_folder(path.absolute().parent)


def check_place(path: Path) -> None:
    """Refuse a place where there is neither a library nor room for one.

    Raises:
        InputError: so it is.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: give the folder of a library, or a new one.")
    if path.exists() and not is_library(path) and not _is_begun(path):
        raise InputError(f"{path} holds other things and no library: give a new or empty folder.")


def _is_begun(path: Path) -> bool:
    """Whether a folder holds nothing but what the making of a library leaves before it is done."""
    names = {".lock", _DOCUMENTS, _INCOMING, f"{CATALOGUE}.new", f"{CATALOGUE}.new-journal"}
    return path.is_dir() and {each.name for each in path.iterdir()} <= names


class Shelves:
    """The files of a library's documents.

    Args:
        path: of the library.

    Attributes:
        folder: of the documents.
        changes: how often this process has changed the catalogue.
    """

    def __init__(self, path: Path, catalogue: Catalogue) -> None:
        self._path, self._catalogue = path, catalogue
        self.folder, self._incoming = path / _DOCUMENTS, path / _INCOMING
        self.changes = 0

    # ---- adding

    def unchanged(self, name: str, path: Path) -> Added | None:
        """The document of a name, if it is of the very file that lies at a path; the file is not opened as a
        document for that."""
        entry = self._present(name)
        with plainly(f"The file {path} cannot be read"):
            if entry is not None and path.is_file() and sha256_of(path) == entry.sha256:
                return Added(name, "unchanged", entry)
        return None

    def add(self, document: Document, stage: Stage) -> Added:
        """Add a document; the caller is the only `writer`."""
        checked_name(document.name)
        entry = self._present(document.name)
        if entry is not None and entry.sha256 == document.sha256:
            return Added(document.name, "unchanged", entry)
        staging = self.begin(document)
        with plainly(f"The document {document.name!r} cannot be added"):
            return self.put(document, stage(document, staging), staging)

    def begin(self, document: Document) -> Path:
        """A folder to make the files of a document in; of other versions, what was begun goes."""
        staging = self._incoming / f"{_hash(document.name)}-{_hash(document.text)}"
        self._drop_unfinished(document.name, but=staging)
        with plainly(f"The document {document.name!r} cannot be added"):
            staging.mkdir(parents=True, exist_ok=True)
            (staging / _NAME).write_text(document.name, encoding="utf-8")
        return staging

    def put(self, document: Document, size: Size, staging: Path) -> Added:
        """Put the files of a document into place, and those of an older version away."""
        before, folder = self._present(document.name), secrets.token_hex(16)
        entry = DocumentEntry(
            id=0,
            name=document.name,
            kind=document.kind,
            sha256=document.sha256,
            tokens=size.tokens,
            segments=size.segments,
            characters=size.characters,
            pages=document.places.pages,
            bytes=sum(file.stat().st_size for file in staging.rglob("*") if file.is_file()),
            added=time.time(),
            folder=folder,
        )
        sync_folder(staging)
        staging.rename(self.folder / folder)
        sync_folder(self.folder)
        entry = self._catalogue.put(entry)
        self.changes += 1
        if before is not None:
            shutil.rmtree(self.folder / before.folder, ignore_errors=True)
        return Added(document.name, "added" if before is None else "replaced", entry)

    # ---- removing

    def remove(self, name: str) -> None:
        """Remove a document, and what was read of an unfinished version of it.

        Raises:
            InputError: there is neither.
        """
        with self.writer():
            entry = self._present(name)
            if entry is None and name not in self.unfinished():
                self._catalogue.document(name)  # which says so
            self._drop_unfinished(name)
            if entry is not None:
                self._catalogue.remove(name)
                self.changes += 1
                shutil.rmtree(self.folder / entry.folder, ignore_errors=True)
                sync_folder(self.folder)

    def unfinished(self) -> list[str]:
        """Names of documents whose reading was stopped."""
        names = []
        for folder in sorted(self._incoming.iterdir()) if self._incoming.is_dir() else ():
            try:
                names.append((folder / _NAME).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):  # killed before it was written
                continue
        return names

    def _drop_unfinished(self, name: str, but: Path | None = None) -> None:
        """Remove what was read of unfinished versions of a document, but for one folder."""
        for folder in self._incoming.glob(f"{_hash(name)}-*"):
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)

    # ---- all of them

    def export(self, entry: DocumentEntry, out: Path) -> None:
        """Copy the memory of a document; refused where something would be lost there."""
        files, info = load_directory(self.folder / entry.folder / MEMORY)
        text, indexed = files["records"]["text"], bool(info.get("indexed", False))
        save_directory(out, files, info, partial(check_replaced, out, text, indexed))

    def verify(self) -> list[str]:
        """Every problem of the catalogue and of the documents' files, as plain sentences."""
        if problems := self._catalogue.problems():
            return problems
        for entry in self._catalogue.documents():
            problems += _problems(entry, self.folder / entry.folder)
        return problems

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Be the only writer; what a killed one has left is removed first."""
        with writer_lock(self._path):
            known = {entry.folder for entry in self._catalogue.documents()}
            for folder in self.folder.iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)
            yield

    def _present(self, name: str) -> DocumentEntry | None:
        return next((entry for entry in self._catalogue.documents() if entry.name == name), None)


def _problems(entry: DocumentEntry, folder: Path) -> list[str]:
    try:
        found = MemoryState.verify(folder / MEMORY)
        if index_digest(folder) != (folder / _DIGEST).read_text(encoding="ascii"):
            found.append(f"The file {folder / INDEX} was changed after it was written.")
    except MemoryMissingError as error:
        found = [str(error)]
    except (OSError, UnicodeDecodeError) as error:
        found = [f"A file of it cannot be read ({error})."]
    return [f"The document {entry.name!r} is damaged, remove it and add it again. {each}" for each in found]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
