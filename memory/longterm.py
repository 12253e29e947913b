"""Long-term memory: one record for each segment that was read, found again by its search key."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import InputError, NonFiniteError
from hiermem.memory.hmt.module import HMTModule
from hiermem.memory.stored import MOST, Stored, exactly, in_range
from hiermem.retrieval.arena import TensorArena
from hiermem.retrieval.keys.lexical import LexicalKey, LexicalKeyConfig
from hiermem.retrieval.store import RecallStore, StoreConfig, new_store
from hiermem.settings import check_settings

MOST_OF_A_KEY = 1e9
"""So large can no entry of a search key be, and products of two are still finite."""

WIDEST = 1 << 20
"""Numbers of a search key."""


@dataclass
class LongTermConfig:
    """Settings of the long-term memory.

    Attributes:
        top_k: records that a question recalls; 0 switches recall off.
        store: the index behind the search.
        lexical: the part of the search key that needs no training.
    """

    top_k: int = 8
    store: StoreConfig = field(default_factory=StoreConfig)
    lexical: LexicalKeyConfig = field(default_factory=LexicalKeyConfig)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.top_k < 0:
            raise InputError(f"top_k must not be negative, not {self.top_k}.")
        if self.lexical.dim > WIDEST or self.lexical.saturation > WIDEST:
            raise InputError(f"LexicalKeyConfig.dim and .saturation must be at most {WIDEST}.")


class SegmentRecord:
    """What a segment leaves behind.

    Attributes:
        first_token: true position of its first token in the document.
        ids: its tokens, ``[n]`` int32.
        start, end: its character span in the document.
        utf8: the characters of that span, exactly, ``[bytes]`` uint8.
        embedding: its memory embeddings ``[m, width]``, where the model makes them.
    """

    def __init__(
        self, first_token: int, ids: Tensor, start: int, end: int, text: str, embedding: Tensor | None = None
    ) -> None:
        self.first_token, self.ids, self.start, self.end = first_token, ids, start, end
        utf8 = bytearray(text.encode("utf-8", "surrogatepass"))
        self.utf8 = torch.frombuffer(utf8, dtype=torch.uint8) if utf8 else torch.zeros(0, dtype=torch.uint8)
        self.embedding = embedding

    @property
    def text(self) -> str:
        """The characters of its span."""
        return bytes(self.utf8.numpy()).decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Hit:
    """A recalled record.

    Attributes:
        segment: its index.
        score: inner product of the question's key and the record's.
    """

    segment: int
    score: float
    record: SegmentRecord


class LongTermMemory:
    """Records in document order. The last one may be *open*: its segment is not complete yet.

    Only complete segments are in the store and in the key's statistics, so that reading in pieces leaves
    the same memory as reading at once; an open one is compared beside the store.

    A key is its lexical part and, where the model has one, the trained part behind it, in one store.

    Args:
        summary: the parameters of the memory embeddings, where the model makes them.
    """

    def __init__(self, config: LongTermConfig, summary: HMTModule | None = None) -> None:
        self.config = config
        self.key = LexicalKey(config.lexical)
        self.summary = summary if summary is not None and summary.config.search else None
        self.store: RecallStore = self._new_store()
        self.records: list[SegmentRecord] = []
        self.open: SegmentRecord | None = None
        self._ids, self._utf8 = TensorArena(torch.int32), TensorArena(torch.uint8)

    def __len__(self) -> int:
        return len(self.records) + (self.open is not None)

    def _new_store(self) -> RecallStore:
        width = 0 if self.summary is None else self.summary.config.search
        return new_store(self.config.lexical.dim + width, self.config.store)

    def write(self, records: Sequence[SegmentRecord]) -> None:
        """Keep complete segments; any open one is replaced by them."""
        if records:
            self.store.add(self._keys(records))
            for record in records:
                self.key.observe(record.text)
                record.ids, record.utf8 = self._ids.keep(record.ids), self._utf8.keep(record.utf8)
            self.records = [*self.records, *records]
            self.open = None

    def copy(self) -> "LongTermMemory":
        """An independent memory with the same content; costs nothing, since what it holds is replaced, never
        changed in place."""
        twin = copy(self)
        twin.key, twin.store = self.key.copy(), self.store.copy()
        return twin

    @torch.no_grad()
    def _keys(self, records: Sequence[SegmentRecord]) -> Tensor:
        """The records' search keys, ``[n, D]`` float32; one without memory embeddings has zeros for them."""
        lexical = self.key.document_keys([record.text for record in records])
        if self.summary is None:
            return lexical
        found = torch.zeros(len(records), self.summary.config.search)
        known = [at for at, record in enumerate(records) if record.embedding is not None]
        if known:
            embeddings = [e for record in records if (e := record.embedding) is not None]
            found[known] = self.summary.search_keys(torch.stack(embeddings)).cpu()
        return torch.cat((lexical, found), dim=1)

    @torch.no_grad()
    def _query(self, question: str, summary: Tensor | None) -> Tensor:
        """The query ``[1, D]`` float32 to the records' search keys."""
        lexical = self.key.query_key(question).unsqueeze(0)
        if self.summary is None:
            return lexical
        found = torch.zeros(1, self.summary.config.search)
        if summary is not None:
            found = self.summary.search_queries(summary.unsqueeze(0)).cpu()
        return torch.cat((lexical, found), dim=1)

    def search(
        self,
        question: str,
        k: int,
        wanted: Callable[[SegmentRecord], bool] = lambda _: True,
        summary: Tensor | None = None,
    ) -> list[Hit]:
        """The best ``k`` records for which ``wanted`` holds, best first.

        Args:
            summary: of the question, ``[m, d]``, where keys have a trained part.

        Raises:
            NonFiniteError: the question's key holds NaN or infinity.
        """
        query = self._query(question, summary)
        if not query.isfinite().all():
            raise NonFiniteError("The search key of the question is not finite: load the model in float32.")
        hits: list[Hit] = []
        if self.open is not None and wanted(self.open):
            score = float(query @ self._keys([self.open]).T)
            hits.append(Hit(len(self.records), score, self.open))
        found, breadth = 0, k
        while found < k and len(self.store):
            breadth = min(breadth, len(self.store))
            scores, ids = self.store.search(query, breadth)
            pairs = zip(scores[0].tolist(), ids[0].tolist(), strict=True)
            stored = [Hit(i, s, self.records[i]) for s, i in pairs if i >= 0 and wanted(self.records[i])][:k]
            found = len(stored)
            if found >= k or breadth == len(self.store):
                hits.extend(stored)
                break
            breadth *= 4
        return sorted(hits, key=lambda hit: (-hit.score, hit.segment))[:k]

    # ---- saving

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything as tensors, by file name."""
        records = [*self.records, *([self.open] if self.open else [])]
        spans = [
            [record.first_token, len(record.ids), record.start, record.end, len(record.utf8)]
            for record in records
        ]
        embeddings = [record.embedding for record in self.records if record.embedding is not None]
        return {
            "records": {
                "spans": torch.tensor(spans, dtype=torch.int64).reshape(-1, 5),
                "ids": torch.cat([torch.zeros(0, dtype=torch.int32), *(record.ids for record in records)]),
                "text": torch.cat([torch.zeros(0, dtype=torch.uint8), *(record.utf8 for record in records)]),
            },
            "keys": {"keys": self.store.keys, **self.key.state_dict()},
            "embeddings": {"embeddings": torch.stack(embeddings)} if embeddings else {},
        }

    @classmethod
    def from_tensors(
        cls,
        config: LongTermConfig,
        files: dict[str, dict[str, Tensor]],
        summary: HMTModule | None = None,
    ) -> "LongTermMemory":
        """The inverse of `tensors`; the index is built anew from the keys.

        Raises:
            ValueError: something is missing, left over or not as such a memory leaves it.
        """
        return cls.from_contents(config, Contents.read(files), summary)

    @classmethod
    def from_contents(
        cls, config: LongTermConfig, contents: "Contents", summary: HMTModule | None = None
    ) -> "LongTermMemory":
        """The same from what `tensors` gave, checked.

        Raises:
            ValueError: it does not fit the settings.
        """
        memory = cls(config, summary)
        memory.store.add(contents.keys)
        memory.key.load_state_dict(contents.statistics)
        count = len(contents.keys)
        memory.records, memory.open = contents.records[:count], next(iter(contents.records[count:]), None)
        return memory

    # ---- copies

    def __copy__(self) -> "LongTermMemory":
        """Another one of the same records, store and key."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "summary": self.summary, "files": self.tensors()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = self.from_tensors(state["config"], state["files"], state["summary"]).__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> "LongTermMemory":
        """An independent memory; the parameters of the memory embeddings are shared, they are the model's."""
        return self.from_tensors(deepcopy(self.config, memo), self.tensors(), self.summary)


@dataclass(frozen=True)
class Contents:
    """What `LongTermMemory.tensors` gave, each checked and against the others.

    Attributes:
        records: the last may be open.
        ids: all their tokens, ``[T]`` int32.
        keys: of the complete records, ``[N, D]`` float32.
        statistics: of the search key.
    """

    records: list[SegmentRecord]
    ids: Tensor
    keys: Tensor
    statistics: dict[str, Tensor]

    @classmethod
    def read(cls, files: Mapping[str, Mapping[str, Tensor]]) -> "Contents":
        """Take the tensors apart again.

        Raises:
            ValueError: something is missing, left over or does not fit the rest.
        """
        exactly(dict(files), ("records", "keys", "embeddings"), "the long-term memory")
        records, statistics = _read_records(files["records"]), dict(files["keys"])
        keys = Stored({"keys": statistics.pop("keys", torch.zeros(0))}, "keys.").take(
            "keys", torch.float32, None, None
        )
        if len(records) - len(keys) not in (0, 1):
            raise ValueError("there are as many keys as records, but for an open one")
        if keys.numel() and float(keys.abs().max()) > MOST_OF_A_KEY:
            raise ValueError("a search key leaves its range")
        _check_statistics(statistics, len(keys))
        embeddings = files["embeddings"].get("embeddings")
        if embeddings is not None:
            if len(files["embeddings"]) != 1 or not embeddings.ndim or len(embeddings) != len(keys):
                raise ValueError("there are as many embeddings as complete records")
            if not (embeddings.is_floating_point() and bool(embeddings.isfinite().all())):
                raise ValueError("the embeddings are not finite numbers")
            for record, embedding in zip(records, embeddings, strict=False):
                record.embedding = embedding
        elif files["embeddings"]:
            raise ValueError("there is no place for what stands among the embeddings")
        return cls(records, files["records"]["ids"], keys, statistics)

    def check(
        self, segment: int, tokens: int, characters: int, vocabulary: int | None = None, overlap: bool = False
    ) -> None:
        """Refuse records that are not those of a document, one after the other.

        Args:
            segment: tokens of a complete record.
            tokens, characters: of the document.
            vocabulary: how many tokens there are; None: any.
            overlap: whether characters may stand in two records, as the first release left them where an open
                segment that hands on memory embeddings was read on.

        Raises:
            ValueError: they are not.
        """
        in_range(self.ids, 0, MOST if vocabulary is None else vocabulary - 1, "a token")
        at = character = 0
        for number, record in enumerate(self.records):
            gap, count = record.start - character, len(record.ids)
            if record.first_token != at or gap > 0 or (gap and not overlap):
                raise ValueError(f"record {number} does not begin where the one before ends")
            complete = number < len(self.keys)
            if count != segment if complete else not 0 < count < segment:
                raise ValueError(f"record {number} has another number of tokens")
            at, character = at + count, record.end
        if (at, character) != (tokens, characters):
            raise ValueError("the records are of another document")


def _read_records(tensors: Mapping[str, Tensor]) -> list[SegmentRecord]:
    stored = Stored(tensors, "records.")
    spans = in_range(stored.take("spans", torch.int64, None, 5), 0, MOST, "a span").tolist()
    ids, text = stored.take("ids", torch.int32, None), bytes(stored.take("text", torch.uint8, None).numpy())
    stored.done()
    records, at_token, at_byte = [], 0, 0
    for first, count, start, end, size in spans:
        piece = text[at_byte : at_byte + size].decode("utf-8", "surrogatepass")
        if end - start != len(piece):
            raise ValueError("a record has another number of characters")
        records.append(SegmentRecord(first, ids[at_token : at_token + count], start, end, piece))
        at_token, at_byte = at_token + count, at_byte + size
    if (at_token, at_byte) != (len(ids), len(text)):
        raise ValueError("the records are of another length")
    return records


def _check_statistics(tensors: Mapping[str, Tensor], segments: int) -> None:
    """Refuse statistics of a search key that are not of so many segments."""
    stored = Stored(tensors, "keys.")
    units = stored.take("unit_ids", torch.int64, None)
    stored.take("frequency", torch.int64, len(units))
    if int(stored.take("segments", torch.int64, 1)) != segments:
        raise ValueError("the statistics are of another number of segments")
    stored.done()
    if not bool((units[1:] > units[:-1]).all()):
        raise ValueError("the units are not in order")
