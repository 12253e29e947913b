"""`Library`: many documents in one folder, asked together."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, overload

from hiermem import answering, asking
from hiermem.answer import Answer
from hiermem.answer_stream import AnswerStream
from hiermem.asked_memory import AskedMemory
from hiermem.chat import Chat
from hiermem.documents import Document
from hiermem.errors import InputError, MemoryCorruptError
from hiermem.library.addition import Addition
from hiermem.library.asked import AskedLibrary
from hiermem.library.catalogue import Catalogue, is_library
from hiermem.library.document_index import Scope
from hiermem.library.entries import Added, DocumentEntry, Reading
from hiermem.library.files import found_files, opened
from hiermem.library.index import LibraryIndex
from hiermem.library.settings import LibrarySettings
from hiermem.library.shelves import Shelves, make_library, origin
from hiermem.library.workers import Workers
from hiermem.memory.places import Places
from hiermem.model import HierMemModel
from hiermem.passages import Source

_ATTEMPTS = 5


class Library:
    """Many documents in one folder: added, asked together, and removed.

    One process adds and removes at a time; any number ask meanwhile, and see whole documents. The model is
    used by one thread at a time.

    Example:
        >>> library = Library.open("papers", model)
        >>> library.add(["harbour.pdf", "notes"])
        >>> answer = library.ask("Who is the captain?")
        >>> [(source.document, source.page, source.text) for source in answer.sources]

    Attributes:
        path: of its folder.
        settings: that all documents are read with.
    """

    def __init__(self, path: Path, catalogue: Catalogue, model: HierMemModel) -> None:
        self.path, self._catalogue, self._model = path, catalogue, model
        self.settings = LibrarySettings.read(catalogue.settings, path)
        empty = self.settings.check(model, path)
        self._shelves = Shelves(path, catalogue)
        self._shelves.check_folders()
        self._index = LibraryIndex(empty.longterm, self._shelves.folder)
        self._working_config = model.config.working
        self._version = -1
        self.refresh()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: HierMemModel,
        *,
        index: bool | None = None,
        writes: bool = True,
    ) -> "Library":
        """Open a library, or make one.

        Args:
            index: of a new library, whether its documents are only indexed: the backbone reads nothing of
                them, which is much faster. None: they are where the model's search keys and tiers need
                nothing that the backbone makes.
            writes: False refuses to make a library where there is none.

        Raises:
            MemoryMissingError: there is none, and none is to be made.
            MemoryIncompatibleError: it was made with another model, or with other search keys.
            MemoryCorruptError, MemoryTooNewError, MemoryLockedError, MemoryFileError: see `hiermem.errors`.
            InputError: ``index`` is not as the library was made.
        """
        path = Path(path)
        if is_library(path) or not writes:
            library = cls(path, Catalogue(path), model)
            if index is not None and index != library.settings.index:
                done = "only indexes its documents" if library.settings.index else "reads its documents"
                raise InputError(
                    f"The library at {path} {done}: leave index (--index, --read) out, or make another one."
                )
            return library
        make_library(path, LibrarySettings.of(model, index).plain())
        return cls(path, Catalogue(path), model)

    # ---- documents

    def documents(self) -> list[DocumentEntry]:
        """All documents that are there now, in the order in which they came."""
        return self._catalogue.documents()

    def document(self, name: str) -> DocumentEntry:
        """The document of a name.

        Raises:
            InputError: there is none.
        """
        return self._catalogue.document(name)

    def add(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        progress: bool = True,
        on_reading: Callable[[Reading], None] | None = None,
        workers: Workers | None = None,
    ) -> list[Added]:
        """Add files, and all that can be read in folders. A file that is there unchanged is left out; of one
        that has changed the new version takes the old one's place.

        Whatever stops it, documents that were added stay, and adding the same again goes on in the one that
        was being read.

        Args:
            progress: show a progress bar on long work, where the error stream is a terminal.
            on_reading: told how far a document was read, after every chunk; what it raises stops the reading.
            workers: processes that read; None: this one does.

        Raises:
            InputError: a file cannot be read, or two files have one name; what came before it is added.
            MemoryLockedError: another process is adding or removing.
        """
        files = found_files(paths)
        if workers is None:
            with self.writer():
                return [
                    self.add_file(name, path, progress=progress, on_reading=on_reading)
                    for name, path in files
                ]
        if on_reading is not None:
            raise InputError("Workers do not tell how far they have read: leave on_reading out.")
        added = list(workers.add(self.path, files))
        self.refresh()
        return added

    def add_file(
        self,
        name: str,
        path: Path,
        *,
        progress: bool = True,
        on_reading: Callable[[Reading], None] | None = None,
    ) -> Added:
        """Add one file under a name; see `add`."""
        with self._shelves.writer():
            added = self._shelves.unchanged(name, path)
            if added is None:
                stage = Addition(self._model, self.settings, progress, on_reading)
                added = self._shelves.add(opened(name, path), stage, origin(path))
        self.refresh()
        return added

    def add_document(
        self,
        document: Document,
        *,
        progress: bool = True,
        on_reading: Callable[[Reading], None] | None = None,
    ) -> Added:
        """Add one document that is no file; see `add`."""
        with self._shelves.writer():
            added = self._shelves.add(document, Addition(self._model, self.settings, progress, on_reading))
        self.refresh()
        return added

    def remove(self, name: str) -> None:
        """Remove a document; nothing of it stays in the library's folder, what was read of a version that was
        never finished included.

        Raises:
            InputError: there is no document of that name.
            MemoryLockedError: another process is adding or removing.
        """
        self._shelves.remove(name)
        self.refresh()

    def writer(self) -> AbstractContextManager[None]:
        """Be the only writer while this lasts, so that several changes are made without another in between.

        Raises:
            MemoryLockedError: another process is adding or removing.
        """
        return self._shelves.writer()

    def unfinished(self) -> list[str]:
        """Names of documents whose reading was stopped; adding them again goes on."""
        return self._shelves.unfinished()

    def text(self, name: str) -> str:
        """All of a document, character by character.

        Raises:
            InputError: there is none of that name.
        """
        self.refresh()
        return self._index.document(name).text

    def places(self, name: str) -> Places:
        """Pages and chapters of a document.

        Raises:
            InputError: there is none of that name.
        """
        self.refresh()
        return self._index.document(name).places

    def export(self, name: str, out: str | os.PathLike[str]) -> None:
        """Write the memory of a document, as `MemoryState.save` does.

        Raises:
            InputError: there is none of that name.
            MemoryFileError: it cannot be written.
        """
        self._shelves.export(self.document(name), Path(out))

    def verify(self) -> list[str]:
        """Every problem of the library in plain words; none means that all documents are undamaged."""
        return self._shelves.verify()

    # ---- questions

    @property
    def top_k(self) -> int:
        """Segments that a question recalls where nothing else is said."""
        return self._model.config.longterm.top_k

    @overload
    def ask(
        self,
        question: str,
        top_k: int | None = None,
        max_new_tokens: int = 64,
        *,
        stream: Literal[False] = False,
        documents: Sequence[str] = (),
        before: int | None = None,
    ) -> Answer: ...

    @overload
    def ask(
        self,
        question: str,
        top_k: int | None = None,
        max_new_tokens: int = 64,
        *,
        stream: Literal[True],
        documents: Sequence[str] = (),
        before: int | None = None,
    ) -> AnswerStream: ...

    @overload
    def ask(
        self,
        question: list[str] | tuple[str, ...],
        top_k: int | None = None,
        max_new_tokens: int = 64,
        *,
        documents: Sequence[str] = (),
        before: int | None = None,
    ) -> list[Answer]: ...

    def ask(
        self,
        question: str | list[str] | tuple[str, ...],
        top_k: int | None = None,
        max_new_tokens: int = 64,
        *,
        stream: bool = False,
        documents: Sequence[str] = (),
        before: int | None = None,
    ) -> Answer | AnswerStream | list[Answer]:
        """Answer a question from all documents, with sources; see `HierMemModel.ask`.

        Args:
            documents: names of those that the question is about; empty: all.
            before: only pages before that one; documents without pages are left out then.

        Raises:
            InputError: the question is empty, there is no such document, or a number is too small.
        """
        prepare = partial(self.prepare, documents=documents, before=before)
        return answering.ask(self._model, prepare, question, top_k, max_new_tokens, stream)

    def prepare(
        self,
        question: str,
        top_k: int | None = None,
        *,
        documents: Sequence[str] = (),
        before: int | None = None,
    ) -> asking.PreparedPrompt:
        """The prompt that `ask` answers: passages, then the question."""
        return asking.prepare(self._model, self._asked(documents, before), question, top_k)

    def chat(self, *, documents: Sequence[str] = (), before: int | None = None) -> Chat:
        """A conversation about the documents: earlier turns count in what a question means.

        Args:
            documents: as of `ask`.
            before: as of `ask`.
        """
        return Chat(self._model, self._asked(documents, before), self.refresh)

    def search(
        self, question: str, count: int = 8, *, documents: Sequence[str] = (), before: int | None = None
    ) -> list[Source]:
        """Passages that fit a question, best first, whether or not there is an answer in them.

        Args:
            count: segments that passages are taken from.
            documents: as of `ask`.
            before: as of `ask`.
        """
        if type(count) is not int or count < 1:
            raise InputError(f"The count of segments must be a whole number of at least 1, not {count!r}.")
        with self._model.inference():
            return asking.passages(self._model, self._asked(documents, before), question, count)

    def _asked(self, documents: Sequence[str], before: int | None) -> AskedMemory:
        if self._model.config.asking.working or self._model.config.asking.passages == "kv":
            raise InputError(
                "Answers from a library stand on passages of text: leave asking.working and asking.passages "
                "out."
            )
        if before is not None and (type(before) is not int or before < 1):
            raise InputError(f"Pages count from 1: give a whole number of at least 1 in place of {before!r}.")
        if isinstance(documents, str):
            raise InputError("Give the names of documents as a list, not as one text.")
        self.refresh()
        for name in documents:
            self._index.document(name)
        return AskedLibrary(
            self._index,
            Scope(frozenset(documents), before),
            self._model.new_working_memory,
            self._working_config,
        )

    def refresh(self) -> None:
        """Take in what was added and removed since, by other processes too; questions do it by themselves."""
        for attempt in range(_ATTEMPTS):
            version = self._catalogue.version + self._shelves.changes
            if version == self._version:
                return
            try:
                self._index.show(self._catalogue.documents())
            except FileNotFoundError as error:  # it has just been removed
                if attempt == _ATTEMPTS - 1:
                    raise MemoryCorruptError(
                        f"A document of the library lacks its file {error.filename}: hiermem verify names "
                        f"it; remove that document and add it again."
                    ) from error
            else:
                self._version = version

    def close(self) -> None:
        """Close its files."""
        self._catalogue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.documents())

    def __repr__(self) -> str:
        return f"Library({os.fspath(self.path)!r}, {len(self)} documents)"
