"""Long-term memory: one record for each segment that was read, found again by its search key."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.summary import SummaryMemory
from hiermem.retrieval.lexical import LexicalKey, LexicalKeyConfig
from hiermem.retrieval.slabs import Slabs
from hiermem.retrieval.store import RecallStore, StoreConfig, new_store


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
        if self.top_k < 0:
            raise InputError(f"top_k must not be negative, not {self.top_k}.")
        if isinstance(self.store, dict):
            self.store = StoreConfig(**self.store)
        if isinstance(self.lexical, dict):
            self.lexical = LexicalKeyConfig(**self.lexical)


class Record:
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
    record: Record


class LongTermMemory:
    """Records in document order. The last one may be *open*: its segment is not complete yet.

    Only complete segments are in the store and in the key's statistics, so that reading in pieces leaves
    the same memory as reading at once; an open one is compared beside the store.

    A key is its lexical part and, where the model has one, the trained part behind it, in one store.

    Args:
        summary: the parameters of the memory embeddings, where the model makes them.
    """

    def __init__(self, config: LongTermConfig, summary: SummaryMemory | None = None) -> None:
        self.config = config
        self.key = LexicalKey(config.lexical)
        self.summary = summary if summary is not None and summary.config.search else None
        self.store: RecallStore = self._new_store()
        self.records: list[Record] = []
        self.open: Record | None = None
        self._ids, self._utf8 = Slabs(torch.int32), Slabs(torch.uint8)

    def __len__(self) -> int:
        return len(self.records) + (self.open is not None)

    def _new_store(self) -> RecallStore:
        width = 0 if self.summary is None else self.summary.config.search
        return new_store(self.config.lexical.dim + width, self.config.store)

    def write(self, records: Sequence[Record]) -> None:
        """Keep complete segments; any open one is replaced by them."""
        if records:
            self.store.add(self._keys(records))
            for record in records:
                self.key.observe(record.text)
                record.ids, record.utf8 = self._ids.keep(record.ids), self._utf8.keep(record.utf8)
            self.records.extend(records)
            self.open = None

    @torch.no_grad()
    def _keys(self, records: Sequence[Record]) -> Tensor:
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

    def forget_after(self, count: int) -> None:
        """Go back to the first ``count`` complete records, whatever an interrupted `write` left."""
        if len(self.store) == len(self.records) == count:
            return
        self.records, keys = self.records[:count], self.store.keys[:count]
        self.key, self.store = LexicalKey(self.config.lexical), self._new_store()
        self.store.add(keys)
        for record in self.records:
            self.key.observe(record.text)

    def search(
        self,
        question: str,
        k: int,
        wanted: Callable[[Record], bool] = lambda _: True,
        summary: Tensor | None = None,
    ) -> list[Hit]:
        """The best ``k`` records for which ``wanted`` holds, best first.

        Args:
            summary: of the question, ``[m, d]``, where keys have a trained part.
        """
        query = self._query(question, summary)
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
        summary: SummaryMemory | None = None,
    ) -> "LongTermMemory":
        """The inverse of `tensors`; the index is built anew from the keys."""
        memory = cls(config, summary)
        spans = files["records"]["spans"].tolist()
        text, ids = bytes(files["records"]["text"].numpy()), files["records"]["ids"]
        records, at_token, at_byte = [], 0, 0
        for first, count, start, end, size in spans:
            piece = text[at_byte : at_byte + size].decode("utf-8", "surrogatepass")
            records.append(Record(first, ids[at_token : at_token + count], start, end, piece))
            at_token, at_byte = at_token + count, at_byte + size
        keys = files["keys"]["keys"]
        memory.store.add(keys)
        memory.key.load_state_dict(files["keys"])
        memory.records = records[: len(keys)]
        for record, embedding in zip(records, files["embeddings"].get("embeddings", []), strict=False):
            record.embedding = embedding
        memory.open = records[len(keys)] if len(records) > len(keys) else None
        return memory
