"""Memory of a document: everything that reading it has left behind, in memory and on disk."""

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from hiermem.errors import InputError, MemoryCorruptError, MemoryFileError
from hiermem.memory.contents import STATES, UNITS, Contents
from hiermem.memory.hmt.module import HMTModule
from hiermem.memory.longterm import LongTermMemory
from hiermem.memory.places import Place, Places
from hiermem.memory.records import Hit, RecordTexts, SegmentRecord
from hiermem.memory.saved import SavedInfo, check_fingerprint, check_replaced, named, plain_settings
from hiermem.memory.state_encoder import StateEncoder
from hiermem.memory.stored import exactly
from hiermem.memory.tier import CacheListener, Tier
from hiermem.memory.tier_files import files_of, read_tiers, series_files, tier_file
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.retrieval.files import (
    load_directory,
    save_directory,
    saved_bytes,
    verify_directory,
)
from hiermem.retrieval.keys import Question

_PLACES = "places"
_LINE_FEED = ord("\n")


class MemoryOwner(Protocol):
    """The model that a memory belongs to, which reads into it.

    Attributes:
        summary: the parameters of the memory embeddings; None where they are off.
        state_encoder: what the search key `states` is made by; None where there is none.
        name_or_path: what it was loaded by; empty where it has no name.
        dtype: of its states.
        num_embeddings: rows of its embedding matrix: token ids are smaller.
    """

    name_or_path: str
    summary: HMTModule | None
    state_encoder: StateEncoder | None
    dtype: torch.dtype

    @property
    def num_embeddings(self) -> int: ...

    @property
    def search_keys(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings of the search keys that it is configured with."""

    def fingerprint(self, policy: str | None = None, recurrent: bool = True) -> dict[str, str]:
        """Facts that a memory with this policy, and with memory embeddings or without, must match: name →
        value, in words or as a hash."""

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
        working: the KV cache; empty where segments were only indexed.
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
    def last(self) -> SegmentRecord | None:
        """The last record, complete or not."""
        records = self.longterm.records
        return self.longterm.partial or (records[-1] if records else None)

    @property
    def tokens(self) -> int:
        """Tokens read or indexed so far."""
        return 0 if self.last is None else self.last.first_token + len(self.last.ids)

    @property
    def indexed(self) -> bool:
        """Whether segments were only indexed: the backbone has read nothing of them."""
        return self.tokens > self.working.num_tokens[0]

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
        places: pages and chapters of the document, as far as they are known; it may name some that come later
            than all that was read so far.
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
        self.places = Places()

    def __repr__(self) -> str:
        read = f"{self.tokens} tokens in {self.segments} segments, {self.characters} characters"
        return f"MemoryState({read}, model {self.model!r}{', only indexed' if self.indexed else ''})"

    def __str__(self) -> str:
        read = f"{self.tokens:,} tokens in {self.segments:,} segments, {self.characters:,} characters"
        done = "only indexed" if self.indexed else "read"
        said = f", {done} with {self.model}" if self.model else ", only indexed" if self.indexed else ""
        return f"A memory of {read}{said}"

    @property
    def working(self) -> WorkingMemory:
        """The KV cache.

        Raises:
            InputError: segments were only indexed, so that there is none.
        """
        if self.indexed:
            raise InputError(
                "This memory was only indexed and has no working memory, which this needs: read the document "
                "in place of indexing it, or ask with a top_k above 0 and without asking.working."
            )
        return self.moment.working

    @property
    def working_config(self) -> WorkingMemoryConfig:
        """Settings of the KV cache, and of those that questions are read over."""
        return self.moment.working.config

    @property
    def recurrent(self) -> bool:
        """Whether segments read memory embeddings of earlier ones (HMT)."""
        return self.moment.working.recurrence is not None

    @property
    def indexed(self) -> bool:
        """Whether segments were only indexed: the backbone has read nothing of them."""
        return self.moment.indexed

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
        """Tokens read or indexed so far."""
        return self.moment.tokens

    @property
    def segments(self) -> int:
        """Segments read or indexed so far, an incomplete last one included."""
        return len(self.longterm)

    @property
    def characters(self) -> int:
        """Characters read or indexed so far."""
        last = self.moment.last
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
        return self.moment.working.nbytes + keys.numel() * keys.element_size() + units + tiers

    def check_goes_on(self, index: bool) -> None:
        """Refuse to read on what was only indexed, and to index more where the backbone has left something or
        would have to.

        Args:
            index: whether it is to go on without the backbone.

        Raises:
            InputError: so it is.
        """
        if self.tokens and index != self.indexed:
            done, remedy = ("only indexed", "index") if self.indexed else ("read", "read")
            raise InputError(f"This memory was {done}: {remedy} what comes, too, or begin a new memory.")
        kept = [f"tier {tier.name}" for tier in self.tiers]
        kept += ["memory embeddings"] if self.recurrent else []
        if index and kept:
            raise InputError(
                f"Indexing leaves no {kept[0]}, which the backbone makes: read the document, or configure "
                f"the model without."
            )

    def records(self) -> list[SegmentRecord]:
        """All records, an incomplete last one included."""
        return [*self.longterm.records, *([self.longterm.partial] if self.longterm.partial else [])]

    def segment_text(self, document: str, segment: int) -> str:
        """The text of a segment of the one document; empty where there is none of that number."""
        return RecordTexts(self.records()).segment_text(document, segment)

    def texts(self) -> list[str]:
        """Texts of all records."""
        return [record.text for record in self.records()]

    @property
    def answers_alone(self) -> bool:
        """Whether the working memory can stand before a question without any passages."""
        return True

    def place(self, document: str, character: int) -> Place:
        """The page and chapter of a character of the one document; its line where there are no pages."""
        place = self.places.at(character)
        if place.page:
            return place
        records = self.records()
        segment = max(bisect_right(records, character, key=lambda record: record.start) - 1, 0)
        ends = sum(int((record.utf8 == _LINE_FEED).sum()) for record in records[:segment])
        record = records[segment]
        return replace(place, line=ends + record.text.count("\n", 0, character - record.start) + 1)

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
            MemoryFileError: it could not be written, or the memory of another document is there, or one that
                was read where this one was only indexed; it is untouched.
        """
        cache = self.moment.working
        files: dict[str, Mapping[str, Tensor]] = {"working": cache.state_dict()}
        files |= self.longterm.tensors() | files_of(self.tiers)
        files |= {_PLACES: self.places.tensors()} if self.places else {}
        working, longterm = plain_settings(cache.config), plain_settings(self.longterm.config)
        digests = self.longterm.digests
        info = {
            "fingerprint": self.fingerprint,
            "model": self.model,
            "segment": self.segment,
            "tokens": self.tokens,
            "characters": self.characters,
            "recurrent": self.recurrent,
            **({"indexed": True} if self.indexed else {}),
            "working": {"config": working, "bookkeeping": cache.bookkeeping()},
            "longterm": {"config": longterm, **({"digests": digests} if digests else {})},
        }
        check = partial(check_replaced, path, files["records"]["text"], self.indexed)
        save_directory(path, files, info, check)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: MemoryOwner) -> "MemoryState":
        """Load and verify a saved memory.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError: see `hiermem.errors`.
            MemoryIncompatibleError: it belongs to another backbone, tokenizer or dtype.
        """
        files, info = load_directory(path)
        with named(path):
            saved = SavedInfo.read(info)
        present = model.fingerprint(saved.working.policy, saved.recurrent)
        check_fingerprint(saved.fingerprint, present, f"The memory at {path}")
        saved.check_keys(model.search_keys, path)
        saved.check_states(model.state_encoder is not None, path)
        with named(path):
            working = model.new_working_memory(
                saved.working, recurrent=saved.recurrent, segment=saved.segment
            )
        with named(path, MemoryCorruptError):
            contents = cls._contents(files, saved, model)
            tensors = {name: model.to_device(tensor) for name, tensor in files["working"].items()}
            working.load_state(tensors, saved.bookkeeping, model.dtype, model.num_embeddings)
            summary = model.summary if saved.recurrent else None
            longterm = LongTermMemory.from_contents(saved.longterm, contents, summary, model.state_encoder)
            tiers = read_tiers(files, saved.longterm.tiers, longterm.records)
            if working.recurrence is not None and longterm.partial is not None:
                working.recurrence.resume([model.to_device(longterm.partial.ids.long())])
            name = model.name_or_path or saved.model
            memory = cls(working, longterm, saved.segment, saved.fingerprint, name, tiers)
            memory.places = _places(files)
        check_fingerprint(saved.digests, longterm.digests, f"The memory at {path}")
        return memory

    @staticmethod
    def read_with(path: str | os.PathLike[str]) -> tuple[str, str]:
        """Name of the model that a saved memory was read with, and its dtype; empty where it is not known.

        Neither is to be believed: who made the memory wrote them.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: see `hiermem.errors`.
        """
        saved = SavedInfo.of(path)
        return saved.model, saved.fingerprint.get("dtype", "")

    @staticmethod
    def quantized_with(path: str | os.PathLike[str]) -> str | None:
        """Quantization of the model that a saved memory was read with (`hiermem.quantization`); None: there
        was none. It is not to be believed, either.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: see `hiermem.errors`.
        """
        return SavedInfo.of(path).fingerprint.get("quantization")

    @staticmethod
    def bytes_per_token(path: str | os.PathLike[str]) -> float:
        """Bytes that a saved memory takes on the disk, by the tokens that were read.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: see `hiermem.errors`.
        """
        return saved_bytes(path) / max(SavedInfo.of(path).tokens, 1)

    @staticmethod
    def was_indexed(path: str | os.PathLike[str]) -> bool:
        """Whether a saved memory was only indexed: the backbone has read nothing of it.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: see `hiermem.errors`.
        """
        return SavedInfo.of(path).indexed

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
            with named(path):
                saved = SavedInfo.read(info)
            with named(path, MemoryCorruptError):
                contents = cls._contents(files, saved)
                _places(files)
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
        parts = (*parts, *((STATES,) if saved.longterm.has_states else ()))
        exactly(files, ("working", *parts, *tiers), "the memory", {_PLACES, *series})
        contents = Contents.read({name: files[name] for name in parts})
        vocabulary = None if model is None else model.num_embeddings
        contents.check(saved.segment, saved.tokens, saved.characters, vocabulary, saved.recurrent)
        if model is None:
            return contents
        summary = model.summary if saved.recurrent else None
        if saved.recurrent and summary is None:
            raise ValueError("recurrent is not what it is for the model")
        shape = None if summary is None else summary.embedding_shape
        for record in contents.records[: len(contents.keys)]:
            if (None if record.embedding is None else record.embedding.shape) != shape:
                raise ValueError("the embeddings have another shape")
        return contents


def _places(files: Mapping[str, Mapping[str, Tensor]]) -> Places:
    """Pages and chapters among the files of a memory.

    Raises:
        ValueError: they are not as `Places.tensors` leaves them.
    """
    return Places.of(files[_PLACES]) if _PLACES in files else Places()
