"""Facts and settings of a saved memory, checked by themselves and against what is to go on with it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryIncompatibleError,
    MemoryMissingError,
)
from hiermem.memory.hmt.module import FORMER_NAMES, SummaryConfig
from hiermem.memory.longterm import KEYS, LongTermConfig
from hiermem.memory.stored import MOST, exactly, read_bookkeeping, settings, whole, words
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.retrieval.files import load_part, read_info
from hiermem.retrieval.keys import SEARCH_KEYS, new_search_keys
from hiermem.retrieval.keys.lexical import LexicalKeyConfig

YOUNGER: dict[type, dict[str, Any]] = {
    WorkingMemoryConfig: {"head_shares": None, "policy_settings": {}},
    LongTermConfig: {"keys": KEYS, "tiers": {}},
    LexicalKeyConfig: {"version": 1, "grams": 0},
}
"""Settings that came after the first release of the format, and what memories from before were read with."""

WHERE_USED: dict[type, tuple[str, ...]] = {
    WorkingMemoryConfig: ("policy_settings",),
    LongTermConfig: ("keys", "tiers"),
}
"""Of these, the ones that files hold where they are set: others read them as they did before."""


def plain_settings(config: Any) -> dict[str, Any]:
    """Settings of a part as plain JSON types, as files hold them."""
    kind = type(config)
    unused = [name for name in WHERE_USED.get(kind, ()) if getattr(config, name) == YOUNGER[kind][name]]
    former = {now: name for name, now in FORMER_NAMES.items()} if kind is SummaryConfig else {}
    return {former.get(name, name): value for name, value in asdict(config).items() if name not in unused}


@dataclass(frozen=True)
class SavedInfo:
    """The info of a saved memory.

    Attributes:
        fingerprint: as `MemoryState` has it.
        model: as `MemoryState` has it.
        segment: as `MemoryState` has it.
        tokens: how many were read.
        characters: how many were read.
        recurrent: whether segments read the memory embeddings of earlier ones.
        indexed: whether segments were only indexed, so that the working memory is empty.
        working: settings of the working memory.
        longterm: settings of the long-term memory.
        bookkeeping: as `WorkingMemory.bookkeeping` has it.
        digests: as `LongTermMemory.digests` has them.
    """

    fingerprint: dict[str, str]
    model: str
    segment: int
    tokens: int
    characters: int
    recurrent: bool
    indexed: bool
    working: WorkingMemoryConfig
    longterm: LongTermConfig
    bookkeeping: dict[str, Any]
    digests: dict[str, str]

    @classmethod
    def read(cls, info: Any) -> "SavedInfo":
        """Read a manifest.

        Raises:
            InputError: settings that this version does not know.
            ValueError: anything else that a memory does not say.
        """
        names = ("fingerprint", "segment", "tokens", "characters", "working", "longterm")
        exactly(info, names, "the manifest", optional=("model", "recurrent", "indexed"))  # younger than it
        working = exactly(info["working"], ("config", "bookkeeping"), "the working memory")
        longterm = exactly(info["longterm"], ("config",), "the long-term memory", optional=("digests",))
        bookkeeping = read_bookkeeping(working["bookkeeping"])
        recurrent, indexed = _truth(info, "recurrent"), _truth(info, "indexed")
        tokens = whole(info["tokens"], "tokens")
        if bookkeeping["seen"] != [0 if indexed else tokens]:
            raise ValueError("tokens and seen differ")
        settings_of_longterm = settings(LongTermConfig, longterm["config"], YOUNGER)
        if indexed and (recurrent or settings_of_longterm.tiers or settings_of_longterm.has_states):
            raise ValueError("it is indexed and holds more than that leaves")
        return cls(
            _hashes(info["fingerprint"], "the fingerprint"),
            words(info.get("model", ""), "the model's name"),
            whole(info["segment"], "segment", 1, MOST),
            tokens,
            whole(info["characters"], "characters", 0, MOST),
            recurrent,
            indexed,
            settings(WorkingMemoryConfig, working["config"], YOUNGER),
            settings_of_longterm,
            bookkeeping,
            _hashes(longterm.get("digests", {}), "the digest of a search key"),
        )

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "SavedInfo":
        """Read that of the memory in a folder.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: see `hiermem.errors`.
        """
        info = read_info(path)
        with named(path):
            return cls.read(info)

    def check_keys(self, present: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
        """Refuse to open files, or to ask the hub, because the memory at ``path`` names them.

        Args:
            present: settings of the search keys that the model is configured with.

        Raises:
            MemoryIncompatibleError: a search key names some that the model is not configured with, or needs
                what is not installed.
        """
        for name, key in self.longterm.keys.items():
            if present.get(name) != key and SEARCH_KEYS[name].names_files_with(key):
                raise MemoryIncompatibleError(
                    f"The memory at {path} names files for its search key {name}, which are not opened for "
                    f"that alone: load the model with the same LongTermConfig(keys=…), or give the same "
                    f"--set."
                )
        with named(path):
            for search_key in new_search_keys(
                self.longterm.keys, config=None, projections=None, state_encoder=None
            ):
                search_key.check_available()

    def check_states(self, present: bool, path: str | os.PathLike[str]) -> None:
        """Refuse a memory that is found by the backbone's states where the model makes nothing of them.

        Args:
            present: whether the model has a state encoder.

        Raises:
            MemoryIncompatibleError: so it is.
        """
        if self.longterm.has_states and not present:
            raise MemoryIncompatibleError(
                f"The memory at {path} is found by the backbone's states, for which this model has no "
                f"encoder: load the model that read it."
            )


@contextmanager
def named(
    path: str | os.PathLike[str], refused: type[MemoryFileError] = MemoryIncompatibleError
) -> Iterator[None]:
    """Say of which memory an error is.

    Args:
        refused: what becomes of an `InputError`.
    """
    try:
        yield
    except InputError as error:
        raise refused(f"The memory at {path} cannot be used here. {error}") from error
    except (ValueError, OverflowError) as error:
        raise MemoryCorruptError(
            f"The memory at {path} is whole but does not make sense ({error}): build it again."
        ) from error


def check_replaced(path: str | os.PathLike[str], text: Tensor, indexed: bool) -> None:
    """Refuse to replace a memory by one that has less.

    Args:
        path: folder of the memory that may be there.
        text: of the new one, ``[bytes]`` uint8.
        indexed: whether the new one was only indexed.

    Raises:
        MemoryFileError: it is of anything but the beginning of this text, or was read where the new one was
            only indexed.
    """
    try:
        before = load_part(path, "records").get("text")
    except (MemoryMissingError, MemoryCorruptError):  # nothing there that could be lost
        return
    if before is None or before.dtype != text.dtype:  # nor here: it could not be loaded
        return
    if not torch.equal(before, text[: before.numel()]):
        raise MemoryFileError(
            f"The memory at {path} is of another text, or of more of this one: give another folder, or "
            f"remove it first."
        )
    if indexed and before.numel() and not read_info(path).get("indexed", False):
        raise MemoryFileError(
            f"The memory at {path} was read and this one was only indexed: give another folder, or remove it "
            f"first."
        )


_HOW_LOADED = ("dtype", "quantization")


def check_fingerprint(saved: dict[str, str], present: dict[str, str], memory: str) -> None:
    """Refuse a memory that another model made.

    Args:
        saved: what the memory was read with.
        present: what the model has.
        memory: what the message calls it.

    Raises:
        MemoryIncompatibleError: they differ.
    """
    names = saved.keys() | present.keys()
    for name in sorted(names, key=lambda name: (name not in _HOW_LOADED, name)):  # which change the others
        value, expected = saved.get(name), present.get(name)
        if value != expected:
            how = f"load the model with {name} {value}" if name in _HOW_LOADED and value else None
            remedy = how or "load the model that made it"
            raise MemoryIncompatibleError(
                f"{memory} was not read with this model's {name} ({value}, this model has {expected}): "
                f"{remedy}, or read the document again."
            )


def _truth(info: Mapping[str, Any], name: str) -> bool:
    """A truth value that need not be there.

    Raises:
        ValueError: it is none.
    """
    if type(value := info.get(name, False)) is not bool:
        raise ValueError(f"{name} is not a truth value")
    return value


def _hashes(values: Any, name: str) -> dict[str, str]:
    """Short texts by name.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is not one")
    return {words(key, name): words(value, name) for key, value in values.items()}
