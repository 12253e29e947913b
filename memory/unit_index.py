"""Index of units: the sentences and rows of segments, each found by search keys of its own."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from hiermem.errors import NonFiniteError
from hiermem.memory.contents import MOST_OF_A_KEY
from hiermem.memory.records import SegmentRecord, UnitHit
from hiermem.memory.stored import MOST, Stored, in_range
from hiermem.retrieval.arena import TensorArena
from hiermem.retrieval.keys import Question, SearchKey, UnitText
from hiermem.retrieval.store import RecallStore, StoreConfig, new_store
from hiermem.retrieval.units import LONGEST, split
from hiermem.retrieval.words import words

LEAST_TRUST = 0.2
"""Trust in a search key (`SearchKey.trust`) below which it does not choose passages; where no key has more,
words alone do."""


@dataclass(frozen=True)
class Units:
    """Units of a segment.

    Attributes:
        spans: their first characters in the document and those after their last, ``[u, 2]`` int64.
        keys: ``[u, W]`` float32.
    """

    spans: Tensor
    keys: Tensor

    def hits(self, query: "UnitQuery") -> list[UnitHit]:
        """How well each fits a question by itself."""
        scores, weight = (self.keys @ query.key).tolist(), query.weight or 1.0
        pairs = zip(self.spans.tolist(), scores, strict=True)
        return [UnitHit(start, end, score, score / weight) for (start, end), score in pairs]


@dataclass(frozen=True)
class UnitQuery:
    """A question as units are compared with it.

    Attributes:
        key: its search keys, weighted, ``[W]`` float32.
        weight: of all of them together.
    """

    key: Tensor
    weight: float


@dataclass(frozen=True)
class UnitScale:
    """Meaning of the scores of units.

    Attributes:
        weight: of all their keys together, for this question.
        odds: see `SearchKey.odds`; several keys together have none.
        codes: see `SearchKey.codes`.
    """

    weight: float
    odds: tuple[float, float] | None
    codes: frozenset[str] = frozenset()

    def codes_are_in(self, text: str) -> bool:
        """Whether there are codes, and a text has them all."""
        return bool(self.codes) and self.codes.issubset(words(text))


class UnitIndex:
    """Units of the complete segments of a document, in document order.

    A unit belongs to the segment in which it ends. One that goes on after it belongs to it as well, cut
    there, so that what a segment has depends on its text and on that before it alone.

    Args:
        keys: those of units; they stand side by side.
        config: of the index behind the search.
    """

    def __init__(self, keys: Sequence[SearchKey], config: StoreConfig) -> None:
        self.keys, self._config = list(keys), config
        self._store: RecallStore | None = None  # once the width is known: that may take a model
        self._spans: list[Tensor] = []
        self._first = [0]  # row of each segment, and the row after the last
        self._arena = TensorArena(torch.int64, (2,))
        self._partial: tuple[SegmentRecord, Units] | None = None

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def width(self) -> int:
        """Numbers of a unit's key; to know it may take a model."""
        return sum(key.width for key in self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and spans."""
        keys = 0 if self._store is None else len(self._store) * self._store.dim * 4
        return keys + sum(spans.nbytes for spans in self._spans)

    def copy(self) -> "UnitIndex":
        """An independent index of the same units; costs nothing, since what it holds is replaced."""
        twin = copy(self)
        twin._store = None if self._store is None else self._store.copy()
        return twin

    def units(self, record: SegmentRecord, before: SegmentRecord | None) -> Units:
        """The units of a segment.

        Args:
            before: the segment before it; of other text, such as another document's, nothing is taken.
        """
        follows = before is not None and before.end == record.start
        head = before.text[-LONGEST:] if before is not None and follows else ""
        text, origin = head + record.text, record.start - len(head)
        found = [unit for unit in split(text) if unit.end > len(head)]
        spans = torch.tensor([[origin + unit.start, origin + unit.end] for unit in found], dtype=torch.int64)
        spans, vectors = spans.reshape(-1, 2), record.token_vectors
        embeddings = [None] * len(found) if vectors is None else vectors.embeddings(spans)
        texts = [
            UnitText(text[unit.start : unit.end], unit.paragraph, embedding)
            for unit, embedding in zip(found, embeddings, strict=True)
        ]
        keys = [key.unit_keys(texts) for key in self.keys]
        return Units(spans, torch.cat(keys, dim=1))

    def partial(self, record: SegmentRecord, before: SegmentRecord | None) -> Units:
        """The units of a segment that is not complete, which are made once."""
        if self._partial is None or self._partial[0] is not record:
            self._partial = record, self.units(record, before)
        return self._partial[1]

    def made(self, records: Sequence[SegmentRecord], before: SegmentRecord | None) -> list[Units]:
        """Units of the next complete segments, for `add`.

        Args:
            before: the segment before them.

        Raises:
            NonFiniteError: a key holds NaN or infinity.
        """
        found: list[Units] = []
        for record in records:
            found.append(self.units(record, before))
            if not found[-1].keys.isfinite().all():
                segment = len(self) + len(found) - 1
                raise NonFiniteError(f"a search key of segment {segment} is not finite: it was not stored")
            before = record
        return found

    def add(self, found: Sequence[Units]) -> None:
        """Keep the units of complete segments."""
        keys = torch.cat([units.keys for units in found])
        store = self._store if self._store is not None else new_store(keys.shape[1], self._config)
        store.add(keys)
        self._store, self._spans = store, [*self._spans, *(self._arena.keep(units.spans) for units in found)]
        sizes = (len(units.spans) for units in found)
        self._first = [*self._first[:-1], *accumulate(sizes, initial=self._first[-1])]

    def query(self, question: Question) -> UnitQuery:
        """The question, to search with.

        Raises:
            NonFiniteError: its key holds NaN or infinity.
        """
        weights = [key.weight_for(question) for key in self.keys]
        pairs = zip(weights, self.keys, strict=True)
        query = torch.cat([weight * key.query_key(question) for weight, key in pairs])
        if not query.isfinite().all():
            raise NonFiniteError("The search key of the question is not finite: use another encoder.")
        return UnitQuery(query, sum(weights))

    def search(self, query: UnitQuery, count: int) -> tuple[set[int], float]:
        """Segments of the ``count`` best units, and the score that those of others do not exceed."""
        if self._store is None or not len(self._store):
            return set(), float("-inf")
        scores, rows = self._store.search(query.key.unsqueeze(0), count)
        last = float(scores[0, -1]) if count < len(self._store) else float("-inf")
        rows = rows[rows >= 0]
        return {bisect_right(self._first, row) - 1 for row in rows.tolist()}, last

    def best(self, segment: int, query: UnitQuery) -> float:
        """How well the best unit of a segment fits; 0 where it has none."""
        keys = self._keys_of(segment)
        return float((keys @ query.key).max()) if len(keys) else 0.0

    def hits(self, segment: int, query: UnitQuery) -> list[UnitHit]:
        """How well the units of a segment fit."""
        keys = self._keys_of(segment)
        return Units(self._spans[segment], keys).hits(query) if len(keys) else []

    def _keys_of(self, segment: int) -> Tensor:
        if self._store is None:
            return torch.zeros(0, 0)
        return self._store.keys[slice(self._first[segment], self._first[segment + 1])]

    def scale(self, question: Question) -> UnitScale | None:
        """Meaning of the scores of these units; None: no key knows enough of the question."""
        trusts = [key.trust(question) for key in self.keys]
        if max(trusts) < LEAST_TRUST:
            return None
        weight = sum(key.weight * trust for key, trust in zip(self.keys, trusts, strict=True))
        if len(self.keys) > 1:
            return UnitScale(weight, None)
        return UnitScale(weight, self.keys[0].odds, self.keys[0].codes(question))

    # ---- saving

    def tensors(self) -> dict[str, Tensor]:
        """All units by name: ``keys [M, W]`` float32, ``spans [M, 2]`` and ``counts [N]`` int64."""
        nothing = torch.zeros(0, 2, dtype=torch.int64)
        return {
            "keys": torch.zeros(0, 0) if self._store is None else self._store.keys,
            "spans": torch.cat([nothing, *self._spans]),
            "counts": torch.tensor([len(spans) for spans in self._spans], dtype=torch.int64),
        }

    def load(self, tensors: Mapping[str, Tensor], records: Sequence[SegmentRecord]) -> None:
        """Take the place of an index that gave these tensors.

        Args:
            records: the complete segments.

        Raises:
            ValueError: something is missing, left over or not of these segments.
        """
        found = read_units(tensors, records)
        if any(len(units.keys) for units in found):
            if found[0].keys.shape[1] != self.width:
                raise ValueError("the search keys of units are of another width")
            self.add(found)


def read_units(tensors: Mapping[str, Tensor], records: Sequence[SegmentRecord]) -> list[Units]:
    """Units of each segment, from what `UnitIndex.tensors` gave, checked.

    Raises:
        ValueError: something is missing, left over or not of these segments.
    """
    stored = Stored(tensors, "units.")
    counts = in_range(stored.take("counts", torch.int64, len(records)), 0, MOST, "a number of units").tolist()
    keys = stored.take("keys", torch.float32, sum(counts), None)
    spans = in_range(stored.take("spans", torch.int64, sum(counts), 2), 0, MOST, "a span of a unit")
    stored.done()
    if len(keys) and not keys.shape[1]:
        raise ValueError("the search keys of units are of no width")
    if keys.numel() and float(keys.abs().max()) > MOST_OF_A_KEY:
        raise ValueError("a search key of a unit leaves its range")
    found = []
    for record, own, rows in zip(records, spans.split(counts), keys.split(counts), strict=True):
        begins, ends = own[:, 0], own[:, 1]
        if not bool(((begins < ends) & (ends > record.start) & (ends <= record.end)).all()):
            raise ValueError("a unit is of another segment")
        found.append(Units(own, rows))
    return found
