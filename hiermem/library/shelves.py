"""The files of a library's documents: made aside, put into place by one rename and one commit, and removed.

    LIBRARY/library.sqlite3      which documents there are
    LIBRARY/documents/ID/        of each: memory/, as `MemoryState.save` writes it, and index.safetensors
    LIBRARY/incoming/NAME-TEXT/  of a document whose reading was stopped, or goes on

A folder of documents that no row of the catalogue names was left by a process that was killed. The next
writer takes one that has a `name` back to `incoming`, and deletes any other: its document is gone.
"""

import hashlib
import os
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
from hiermem.errors import InputError, MemoryCorruptError, MemoryFileError, MemoryMissingError
from hiermem.library.catalogue import CATALOGUE, Catalogue, is_folder, is_library
from hiermem.library.document_index import INDEX, index_digest, write_index, write_synced
from hiermem.library.entries import Added, DocumentEntry
from hiermem.library.files import checked_name
from hiermem.library.unfinished import INCOMING, NAME, unfinished_names
from hiermem.memory.saved import check_replaced
from hiermem.memory.state import MemoryState
from hiermem.retrieval.disk import sha256_of, sync_folder
from hiermem.retrieval.files import load_directory, load_part, save_directory, writer_lock
from hiermem.retrieval.manifest import plainly

MEMORY = "memory"
"""Folder of a document's memory within its own."""

_DOCUMENTS, _DIGEST = "documents", "index.sha256"

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
    write_synced(folder / _DIGEST, write_index(folder, memory).encode())
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
            for folder in (path / _DOCUMENTS, path / INCOMING):
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
    names = {".lock", _DOCUMENTS, INCOMING, f"{CATALOGUE}.new", f"{CATALOGUE}.new-journal"}
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
        self.folder, self._incoming = path / _DOCUMENTS, path / INCOMING
        self.changes = self._writers = 0

    # ---- adding

    def unchanged(self, name: str, path: Path) -> Added | None:
        """The document of a name, if it is of the very file that lies at a path; the file is not opened as a
        document for that.

        Raises:
            InputError: another file was added under that name.
        """
        if (entry := self._catalogue.find(name)) is None:
            return None
        with plainly(f"The file {path} cannot be read"):
            if path.is_file() and sha256_of(path) == entry.sha256:
                return self._same(entry)
        if entry.source not in ("", origin(path)):
            raise InputError(
                f"The library has a document {name!r} of another file, {entry.source}: remove that one, or "
                f"give the new one within a folder of another name."
            )
        return None

    def _same(self, entry: DocumentEntry) -> Added:
        """A document that is there as it is to be."""
        self._drop_unfinished(entry.name)
        return Added(entry.name, "unchanged", entry)

    def add(self, document: Document, stage: Stage, source: str = "") -> Added:
        """Add a document; the caller is the only `writer`.

        Args:
            source: the path that its file was read from (`origin`); empty: it is no file here.
        """
        checked_name(document.name)
        entry = self._catalogue.find(document.name)
        if entry is not None and entry.sha256 == document.sha256:
            return self._same(entry)
        staging = self.begin(document)
        with plainly(f"The document {document.name!r} cannot be added"):
            return self.put(document, stage(document, staging), staging, source)

    def begin(self, document: Document) -> Path:
        """A folder to make the files of a document in; of other versions, what was begun goes.

        Raises:
            MemoryCorruptError: a link leads out of it.
        """
        staging = self._incoming / f"{_hash(document.name)}-{_hash(document.text)}"
        _refuse_links(staging, *(staging / name for name in (MEMORY, NAME, INDEX, _DIGEST)))
        self._drop_unfinished(document.name, but=staging)
        with plainly(f"The document {document.name!r} cannot be added"):
            staging.mkdir(parents=True, exist_ok=True)
            write_synced(staging / NAME, document.name.encode())
        return staging

    def put(self, document: Document, size: Size, staging: Path, source: str = "") -> Added:
        """Put the files of a document into place, and those of an older version away.

        As long as `NAME` is among them they are not in the catalogue, or have just come into it: where this
        is killed before, the next writer takes them back to what was begun.
        """
        before, folder = self._catalogue.find(document.name), secrets.token_hex(16)
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
            source=source,
        )
        sync_folder(staging)
        staging.rename(self.folder / folder)
        sync_folder(self.folder)
        if before is not None:
            (self.folder / before.folder / NAME).unlink(missing_ok=True)
        entry = self._catalogue.put(entry)
        self.changes += 1
        (self.folder / folder / NAME).unlink(missing_ok=True)
        if before is not None:
            self._delete(before)
        return Added(document.name, "added" if before is None else "replaced", entry)

    # ---- removing

    def remove(self, name: str) -> None:
        """Remove a document, and what was read of an unfinished version of it.

        Raises:
            InputError: there is neither.
            MemoryFileError: it is out of the library, but the disk refused to delete its files.
        """
        with self.writer():
            entry = self._catalogue.find(name)
            if entry is None and name not in self.unfinished():
                self._catalogue.document(name)  # which says so
            self._drop_unfinished(name)
            if entry is not None:
                (self.folder / entry.folder / NAME).unlink(missing_ok=True)
                self._catalogue.remove(name)
                self.changes += 1
                self._delete(entry)

    def _delete(self, entry: DocumentEntry) -> None:
        """Delete the files of a document that is no longer in the catalogue."""
        folder = self.folder / entry.folder
        try:
            if folder.exists():
                shutil.rmtree(folder)
            sync_folder(self.folder)
        except OSError as error:
            raise MemoryFileError(
                f"The document {entry.name!r} is out of the library, but its files at {folder} cannot be "
                f"deleted ({error.strerror or error}): delete that folder."
            ) from error

    def unfinished(self) -> list[str]:
        """Names of documents whose reading was stopped."""
        return unfinished_names(self._path)

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
        """Be the only writer, within another time that this lasts, too; what a killed one has left is set in
        order first.

        Raises:
            MemoryLockedError: another process is the writer.
            MemoryCorruptError: a link stands in the place of a folder.
        """
        with writer_lock(self._path):
            if not self._writers:
                self._set_in_order()
            self._writers += 1
            try:
                yield
            finally:
                self._writers -= 1

    def _set_in_order(self) -> None:
        """Take back what a killed writer has put into place but not committed, and delete what it has left of
        documents that are gone. Nothing but folders of documents is touched."""
        self.check_folders()
        with plainly(f"The library at {self._path} cannot be written"):
            for folder in (self.folder, self._incoming):
                folder.mkdir(exist_ok=True)
            known = {entry.folder for entry in self._catalogue.documents()}
            for folder in filter(is_folder, self.folder.iterdir()):
                if folder.name not in known:
                    self._take_back(folder)

    def _take_back(self, folder: Path) -> None:
        """Let the reading of a document go on from files that were not committed; others are deleted."""
        try:
            name = (folder / NAME).read_text(encoding="utf-8")
            text = load_part(folder / MEMORY, "records")["text"]
        except (OSError, UnicodeDecodeError, KeyError, MemoryFileError):
            shutil.rmtree(folder, ignore_errors=True)
            return
        staging = self._incoming / f"{_hash(name)}-{_hash_of(bytes(text.numpy()))}"
        if staging.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(staging)

    def check_folders(self) -> None:
        """Refuse a library whose folders are links, which could lead anywhere.

        Raises:
            MemoryCorruptError: so it is.
        """
        _refuse_links(self.folder, self._incoming)


def origin(path: Path) -> str:
    """The path of a file as a library keeps it, to tell two files of one name apart."""
    return os.path.abspath(path)


def _refuse_links(*paths: Path) -> None:
    for path in paths:
        if path.is_symlink():
            raise MemoryCorruptError(f"{path} is a link, and a library stays in its folder: remove it.")


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
    return _hash_of(text.encode("utf-8", "surrogatepass"))


def _hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
