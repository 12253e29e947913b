"""A reading of a document into a memory on disk, as one command after another goes on with it."""

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError, MemoryFileError, MemoryMissingError

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.documents import Document
    from hiermem.memory.state import MemoryState
    from hiermem.model import HierMemModel

ADDITION = "addition"
"""Folder within a memory's own that holds an addition which was stopped, with the memory before it."""

ONLY_INDEXED = (
    "It was only indexed and has no working memory: generate, asking.working and further tiers need the "
    "document read, without --index."
)
"""Sentence on what a memory lacks that the backbone has not read."""


@dataclass
class Task:
    """A reading that may be stopped and gone on with: the memory, the text that is left, and the folders.

    Attributes:
        memory: the memory of all that was read so far.
        rest: text that is still to be read; empty where all was read.
        out: folder of the memory once all was read.
        meanwhile: folder of the memory until then.
        index: whether the backbone is left out.
        before: tokens of the memory when the command began.
        saved: tokens of the memory that is on disk.
    """

    memory: "MemoryState"
    rest: str
    out: Path
    meanwhile: Path
    index: bool = False
    before: int = field(init=False)
    saved: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.saved = self.memory.tokens

    def go_on(self, reader: "HierMemModel", checkpoint: Callable[[], None]) -> None:
        """Read or index the rest."""
        take_in = reader.index if self.index else reader.read
        take_in(self.rest, self.memory, checkpoint=checkpoint)

    def keep(self) -> None:
        """Save the memory so far, if it holds more than was saved."""
        if self.memory.tokens > self.saved:
            self.memory.save(self.meanwhile)
            self.saved = self.memory.tokens

    def finish(self) -> None:
        """Save the whole memory, where it belongs."""
        self.memory.save(self.out)
        self.saved = self.memory.tokens
        if self.meanwhile != self.out and holds_memory(self.meanwhile):
            removed = self.out / f".{ADDITION}-{secrets.token_hex(8)}"
            self.meanwhile.rename(removed)  # at once: a removal may be cut short
            shutil.rmtree(removed, ignore_errors=True)


def holds_memory(folder: Path) -> bool:
    """Whether a folder holds a saved memory."""
    from hiermem.memory.state import MemoryState

    try:
        MemoryState.read_with(folder)
    except MemoryFileError:
        return False
    return True


def with_defaults_of(
    memory_dir: Path, config: "HierMemConfig", *, keys: bool, shares: bool
) -> "HierMemConfig":
    """The same configuration with settings of the memory that is gone on with, if one is there: the default
    is what is installed or ships, and it may have changed since.

    Args:
        keys: whether search keys are the default's.
        shares: whether head shares are; only a memory that was read without any is gone on with so.
    """
    from hiermem.eviction_weights import AUTO
    from hiermem.memory.saved import SavedInfo

    try:
        saved = SavedInfo.of(memory_dir)
    except MemoryMissingError:
        return config
    if shares and saved.working.head_shares is None:  # none were the default before some shipped
        config = type(config)(**{**config.settings(), "evictor": AUTO})
    return _with_keys(config, saved.longterm.keys) if keys else config


def _with_keys(config: "HierMemConfig", keys: dict[str, dict[str, Any]]) -> "HierMemConfig":
    """The same configuration with search keys of a memory, unless they name files."""
    from hiermem.retrieval.keys import SEARCH_KEYS

    if any(SEARCH_KEYS[name].names_files_with(key) for name, key in keys.items()):
        return config  # files are opened because a person says so, not a memory
    longterm = replace(config.longterm, keys=keys)
    return type(config)(**{**config.settings(), "longterm": longterm})


def resumed(reader: "HierMemModel", out: Path, document: "Document", index: bool = False) -> Task:
    """A reading into ``out``, gone on with where an earlier command stopped, or begun.

    Raises:
        InputError: the memory there is of another text or was read with other settings.
    """
    from hiermem.memory.state import MemoryState

    text = document.text
    try:
        memory = MemoryState.load(out, reader)
    except MemoryMissingError:
        memory = reader.new_memory(index)
        memory.places = document.places
        return Task(memory, text, out, out, index)
    _check_settings(reader, memory, out, index)
    already, memory.places = memory.text, document.places
    if already != text and already.startswith(text):
        raise InputError(
            f"The memory at {out} holds this text and more after it: there is nothing to read, or give a new "
            f"folder to --out."
        )
    if not text.startswith(already):
        raise InputError(
            f"The memory at {out} is of another text: give a new folder to --out, or --append to read on in "
            f"it."
        )
    return Task(memory, text[len(already) :], out, out, index)


def appending(reader: "HierMemModel", out: Path, document: "Document", index: bool = False) -> Task:
    """A reading after the memory at ``out``, gone on with where an earlier command stopped, or begun.

    Raises:
        InputError: the memory was read with other settings, or another addition was stopped.
    """
    from hiermem.memory.state import MemoryState
    from hiermem.retrieval.files import check_target
    from hiermem.text import separated

    memory, meanwhile, text = MemoryState.load(out, reader), out / ADDITION, document.text
    _check_settings(reader, memory, out, index)
    if meanwhile.is_symlink():
        raise InputError(f"{meanwhile} is a link, and an addition stays in its memory's folder: remove it.")
    check_target(meanwhile)
    try:
        begun = MemoryState.load(meanwhile, reader)
    except MemoryMissingError:
        rest = separated(memory.last_characters(2), text)
        memory.places = memory.places.then(document.places, memory.characters + len(rest) - len(text))
        return Task(memory, rest, out, meanwhile, index)
    _check_settings(reader, begun, meanwhile, index)
    before, already = memory.text, begun.text
    if before.startswith(already) and before.endswith(text) and len(before) < len(already) + len(text):
        return Task(memory, "", out, meanwhile, index)  # stopped when all was in its place
    text = separated(before, text)  # words of two texts are not to run into one another
    if already.startswith(before) and text.startswith(already[len(before) :]):
        return Task(begun, text[len(already) - len(before) :], out, meanwhile, index)
    raise InputError(
        f"The folder {meanwhile} holds another addition, which was stopped: go on with that one first, or "
        f"delete the folder."
    )


def _check_settings(reader: "HierMemModel", memory: "MemoryState", place: Path, index: bool) -> None:
    """Refuse to go on with a memory that was made with other settings, or in the other way."""
    if memory.indexed and not index:
        raise InputError(
            f"The memory at {place} was only indexed: give --index again, or a new folder to --out."
        )
    if index and not memory.indexed:
        raise InputError(
            f"The memory at {place} was read, not only indexed: leave --index out, or give a new folder to "
            f"--out."
        )
    config = reader.config
    longterm, wanted = memory.longterm.config, reader.longterm_config(index)
    read_with = (memory.working_config, memory.segment, longterm.keys, longterm.tiers)
    if read_with != (config.working, config.segment, wanted.keys, wanted.tiers):
        raise InputError(
            f"The memory at {place} was read with other settings: leave --policy, --policy-set, --budget, "
            f"--segment, --chunk, --positions, --evictor, --set and --preset as they were, or give a new "
            f"folder to --out."
        )
