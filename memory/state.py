"""Memory of a document: everything that reading it has left behind, in memory and on disk."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryIncompatibleError,
    MemoryMissingError,
)
from hiermem.memory.contents import UNITS, Contents
from hiermem.memory.hmt.module import HMTModule
from hiermem.memory.longterm import LongTermConfig, LongTermMemory
from hiermem.memory.records import Hit, SegmentRecord
from hiermem.memory.saved import SavedInfo, plain_settings
from hiermem.memory.stored import exactly
from hiermem.memory.tier import CacheListener, Tier
from hiermem.memory.tier_files import files_of, read_tiers, series_files, tier_file
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.retrieval.files import (
    load_directory,
    load_part,
    read_info,
    save_directory,
    saved_bytes,
    verify_directory,
)
from hiermem.retrieval.keys import SEARCH_KEYS, Question


class MemoryOwner(Protocol):
    """The model that a memory belongs to, which reads into it.

    Attributes:
        summary: the parameters of the memory embeddings; None where they are off.
        name_or_path: what it was loaded by; empty where it has no name.
        dtype: of its states.
        num_embeddings: rows of its embedding matrix: token ids are smaller.
    """

    name_or_path: str
    summary: HMTModule | None
    dtype: torch.dtype

    @property
    def num_embeddings(self) -> int: ...

    @property
    def search_keys(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings of the search keys that it is configured with."""

    def fingerprint(self, policy: str | None = None) -> dict[str, str]:
        """Facts that a memory with this policy must match: name → value, in words or as a hash."""

    def new_working_memory(
        self, config: WorkingMemoryConfig, *, recurrent: bool = False, segment: int | None = None
    ) -> WorkingMemory:
        """An empty working memory on the model's device; if ``recurrent``, with the recurrence of segments of
        ``segment`` tokens each."""

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor where the model computes."""


@dataclass(frozen=True)
class Moment:
    """Content of all tiers at one moment of the document.

    Attributes:
        working: the KV cache.
        longterm: one record per segment.
        tiers: further tiers of the long-term memory.
    """

    working: WorkingMemory
    longterm: LongTermMemory
    tiers: tuple[Tier, ...] = ()

    def __post_init__(self) -> None:
        self.working.listener = CacheListener.of(self.tiers)

    def __reduce__(self) -> tuple[type["Moment"], tuple[Any, ...]]:
        return type(self), (self.working, self.longterm, self.tiers)

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self.working.num_tokens[0]

    def copy(self) -> "Moment":
        """An independent one, to read on in; costs nothing."""
        tiers = tuple(tier.copy() for tier in self.tiers)
        return Moment(self.working.copy(), self.longterm.copy(), tiers)

    def write(self, record: SegmentRecord) -> None:
        """Keep a complete segment in every tier that has records."""
        self.working.show_cache()
        self.longterm.write([record])
        for tier in self.tiers:
            tier.write([record])


class MemoryState:
    """The memory of one document.

    Attributes:
        moment: its content. Reading builds the next one aside and puts it here by one assignment, so that
            whatever stops it leaves the content of one moment.
        segment: tokens in a segment.
        fingerprint: the model that it belongs to.
        model: how that model was called, for those who look for it; empty where it had no name.
    """

    def __init__(
        self,
        working: WorkingMemory,
        longterm: LongTermMemory,
        segment: int,
        fingerprint: dict[str, str],
        model: str = "",
        tiers: tuple[Tier, ...] = (),
    ) -> None:
        for tier in tiers:
            tier.fit(working.cache, working.frames.undecided(0), segment)
        self.moment = Moment(working, longterm, tiers)
        self.segment = segment
        self.fingerprint = fingerprint
        self.model = model

    def __repr__(self) -> str:
        read = f"{self.tokens} tokens in {self.segments} segments, {self.characters} characters"
        return f"MemoryState({read}, model {self.model!r})"

    def __str__(self) -> str:
        read = f"{self.tokens:,} tokens in {self.segments:,} segments, {self.characters:,} characters"
        return f"A memory of {read}" + (f", read with {self.model}" if self.model else "")

    @property
    def working(self) -> WorkingMemory:
        """The KV cache."""
        return self.moment.working

    @property
    def longterm(self) -> LongTermMemory:
        """One record per segment."""
        return self.moment.longterm

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Further tiers of the long-term memory."""
        return self.moment.tiers

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self.moment.tokens

    @property
    def segments(self) -> int:
        """Segments read so far, an incomplete last one included."""
        return len(self.longterm)

    @property
    def characters(self) -> int:
        """Characters read so far."""
        last = self.longterm.partial or (self.longterm.records[-1] if self.longterm.records else None)
        return last.end if last else 0

    @property
    def text(self) -> str:
        """All that was read, character by character."""
        return "".join(record.text for record in self.records())

    def last_characters(self, count: int) -> str:
        """The last ``count`` characters that were read, or fewer."""
        text = ""
        for record in reversed(self.records()):
            if len(text) >= count:
                break
            text = record.text + text
        return text[-count:]

    @property
    def nbytes(self) -> int:
        """Bytes of the working memory, of the search keys and of further tiers."""
        keys, tiers = self.longterm.store.keys, sum(tier.nbytes for tier in self.tiers)
        units = 0 if self.longterm.units is None else self.longterm.units.nbytes
        return self.working.nbytes + keys.numel() * keys.element_size() + units + tiers

    def records(self) -> list[SegmentRecord]:
        """All records, an incomplete last one included."""
        return [*self.longterm.records, *([self.longterm.partial] if self.longterm.partial else [])]

    def recalled_beside(
        self, question: Question, k: int, known: Sequence[Hit], eligible: Callable[[SegmentRecord], bool]
    ) -> list[Hit]:
        """Records that further tiers recall for a question, at most ``k`` each, but those ``known``."""
        segments, hits = {hit.segment for hit in known}, []
        for tier in self.tiers:
            for hit in tier.recall(question, k):
                if hit.segment not in segments and eligible(hit.record):
                    segments.add(hit.segment)
                    hits.append(hit)
        return hits

    # ---- disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as one directory: the old memory or the new one survives a crash at any instant.

        What is there may be an older state of the same document, of which nothing is lost.

        Raises:
            MemoryFileError: it could not be written, or the memory of another document is there, which is
                untouched.
        """
        files: dict[str, Mapping[str, Tensor]] = {"working": self.working.state_dict()}
        files |= self.longterm.tensors() | files_of(self.tiers)
        working, longterm = plain_settings(self.working.config), plain_settings(self.longterm.config)
        digests = self.longterm.digests
        info = {
            "fingerprint": self.fingerprint,
            "model": self.model,
            "segment": self.segment,
            "tokens": self.tokens,
            "characters": self.characters,
            "recurrent": self.working.recurrence is not None,
            "working": {"config": working, "bookkeeping": self.working.bookkeeping()},
            "longterm": {"config": longterm, **({"digests": digests} if digests else {})},
        }
        save_directory(path, files, info, partial(_check_goes_on, path, files["records"]["text"]))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: MemoryOwner) -> "MemoryState":
        """Load and verify a saved memory.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError: see `hiermem.errors`.
            MemoryIncompatibleError: it belongs to another backbone, tokenizer or dtype.
        """
        files, info = load_directory(path)
        with _named(path):
            saved = SavedInfo.read(info)
        check_fingerprint(saved.fingerprint, model.fingerprint(saved.working.policy), f"The memory at {path}")
        _check_keys(saved.longterm, model.search_keys, path)
        with _named(path):
            working = model.new_working_memory(
                saved.working, recurrent=saved.recurrent, segment=saved.segment
            )
        with _named(path, MemoryCorruptError):
            contents = cls._contents(files, saved, model)
            tensors = {name: model.to_device(tensor) for name, tensor in files["working"].items()}
            working.load_state(tensors, saved.bookkeeping, model.dtype, model.num_embeddings)
            longterm = LongTermMemory.from_contents(saved.longterm, contents, model.summary)
            tiers = read_tiers(files, saved.longterm.tiers, longterm.records)
            if working.recurrence is not None and longterm.partial is not None:
                working.recurrence.resume([model.to_device(longterm.partial.ids.long())])
            name = model.name_or_path or saved.model
            memory = cls(working, longterm, saved.segment, saved.fingerprint, name, tiers)
        check_fingerprint(saved.digests, longterm.digests, f"The memory at {path}")
        return memory

    @staticmethod
    def read_with(path: str | os.PathLike[str]) -> tuple[str, str]:
        """Name of the model that a saved memory was read with, and its dtype; empty where it is not known.

        Neither is to be believed: who made the memory wrote them.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: see `hiermem.errors`.
        """
        info = read_info(path)
        with _named(path):
            saved = SavedInfo.read(info)
        return saved.model, saved.fingerprint.get("dtype", "")

    @staticmethod
    def bytes_per_token(path: str | os.PathLike[str]) -> float:
        """Bytes that a saved memory takes on the disk, by the tokens that were read.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: see `hiermem.errors`.
        """
        info = read_info(path)
        with _named(path):
            tokens = SavedInfo.read(info).tokens
        return saved_bytes(path) / max(tokens, 1)

    @classmethod
    def verify(cls, path: str | os.PathLike[str]) -> list[str]:
        """Every problem of a saved memory in plain words; none means that it is undamaged and makes sense.

        It may still be of another model, and who made it may have put anything in it that makes sense.
        """
        problems = verify_directory(path)
        if problems:
            return problems
        try:
            files, info = load_directory(path)
            with _named(path):
                saved = SavedInfo.read(info)
            with _named(path, MemoryCorruptError):
                contents = cls._contents(files, saved)
                read_tiers(files, saved.longterm.tiers, contents.records[: len(contents.keys)])
        except MemoryFileError as error:
            return [str(error)]
        return []

    @staticmethod
    def _contents(
        files: Mapping[str, Mapping[str, Tensor]], saved: SavedInfo, model: MemoryOwner | None = None
    ) -> Contents:
        """Content of the long-term memory, refused where it is not of such a memory; without a model, as far
        as can be told."""
        tiers, series = map(tier_file, saved.longterm.tiers), series_files(files, saved.longterm.tiers)
        parts = ("records", "keys", "embeddings", *((UNITS,) if saved.longterm.has_units else ()))
        exactly(files, ("working", *parts, *tiers), "the memory", series)
        contents = Contents.read({name: files[name] for name in parts})
        vocabulary = None if model is None else model.num_embeddings
        contents.check(saved.segment, saved.tokens, saved.characters, vocabulary, saved.recurrent)
        if model is None:
            return contents
        if saved.recurrent != (model.summary is not None):
            raise ValueError("recurrent is not what it is for the model")
        shape = None if model.summary is None else model.summary.embedding_shape
        for record in contents.records[: len(contents.keys)]:
            if (None if record.embedding is None else record.embedding.shape) != shape:
                raise ValueError("the embeddings have another shape")
        return contents


def _check_goes_on(path: str | os.PathLike[str], text: Tensor) -> None:
    """Refuse to replace a memory of anything but the beginning of this text, ``[bytes]`` uint8."""
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


def _check_keys(
    saved: LongTermConfig, present: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]
) -> None:
    """Refuse to open files, or to ask the hub, because a memory names them.

    Raises:
        MemoryIncompatibleError: a search key names some that the model is not configured with.
    """
    for name, settings in saved.keys.items():
        if present.get(name) != settings and SEARCH_KEYS[name].names_files_with(settings):
            raise MemoryIncompatibleError(
                f"The memory at {path} names files for its search key {name}, which are not opened for that "
                f"alone: load the model with the same LongTermConfig(keys=…), or give the same --set."
            )


@contextmanager
def _named(
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


def check_fingerprint(saved: dict[str, str], present: dict[str, str], memory: str) -> None:
    """Refuse a memory that another model made.

    Args:
        saved: what the memory was read with.
        present: what the model has.
        memory: what the message calls it.

    Raises:
        MemoryIncompatibleError: they differ.
    """
    for name in sorted(saved.keys() | present.keys()):
        value, expected = saved.get(name), present.get(name)
        if value != expected:
            remedy = (
                f"load the model with dtype {value}" if name == "dtype" else "load the model that made it"
            )
            raise MemoryIncompatibleError(
                f"{memory} was not read with this model's {name} ({value}, this model has {expected}): "
                f"{remedy}, or read the document again."
            )
