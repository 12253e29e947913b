"""The reading of one document into a library, saved now and then, so that whatever stops it loses little."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hiermem.documents import Document
from hiermem.errors import MemoryFileError
from hiermem.library.entries import Reading
from hiermem.library.settings import LibrarySettings
from hiermem.library.shelves import MEMORY, Size, staged
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel

SAVE_EVERY = 300.0
"""Seconds after which what was read of a document is saved meanwhile."""

OnReading = Callable[[Reading], None]


@dataclass(frozen=True)
class Addition:
    """The way in which a library reads a document.

    Attributes:
        settings: of the library.
        progress: whether a progress bar is shown.
        on_reading: told how far it has come, after every chunk.
    """

    model: HierMemModel
    settings: LibrarySettings
    progress: bool
    on_reading: OnReading | None

    def __call__(self, document: Document, staging: Path) -> Size:
        """Make the files of a document in a folder; gone on with where an earlier reading was stopped.

        Raises:
            MemoryFileError: they cannot be written.
        """
        folder = staging / MEMORY
        memory = self._begun(document, folder)
        meanwhile = _Meanwhile(memory, folder)

        def checkpoint() -> None:
            if self.on_reading is not None:
                self.on_reading(Reading(document.name, memory.characters, len(document.text)))
            meanwhile.save_if_due()

        try:
            if rest := document.text[memory.characters :]:
                take_in = self.model.index if self.settings.index else self.model.read
                take_in(rest, memory, self.progress, checkpoint)
        except MemoryFileError:  # what cannot be saved now cannot be saved again
            raise
        except BaseException:
            meanwhile.save()
            raise
        self._embed_partial(memory)
        memory.save(folder)
        return staged(memory, staging)

    def _begun(self, document: Document, folder: Path) -> MemoryState:
        """Memory of what was read of a document already; empty where that cannot be gone on with."""
        memory = self._saved(folder)
        if memory is None or not memory.tokens or not document.text.startswith(memory.text):
            shutil.rmtree(folder, ignore_errors=True)
            memory = self.model.new_memory(self.settings.index)
        memory.places = document.places
        return memory

    def _saved(self, folder: Path) -> MemoryState | None:
        """The memory that was saved in a folder; None: there is none that can be used."""
        try:
            return MemoryState.load(folder, self.model)
        except MemoryFileError:
            return None

    def _embed_partial(self, memory: MemoryState) -> None:
        """Make memory embeddings of the last segment, where a search key is made of them."""
        partial = memory.longterm.partial
        if memory.longterm.summary is not None and partial is not None and partial.embedding is None:
            with self.model.inference():
                partial.embedding = self.model.embed(partial.text).cpu()


class _Meanwhile:
    """Saves of a memory while it grows."""

    def __init__(self, memory: MemoryState, folder: Path) -> None:
        self._memory, self._folder = memory, folder
        self._tokens, self._at = memory.tokens, time.monotonic()

    def save_if_due(self) -> None:
        """Save it where the last time was long ago."""
        if time.monotonic() - self._at > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Save it, if it holds more than was saved."""
        if self._memory.tokens > self._tokens:
            self._memory.save(self._folder)
            self._tokens = self._memory.tokens
        self._at = time.monotonic()
