"""Long-term memory: one record for each segment that was read, found again by its search key."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import InputError, NonFiniteError
from hiermem.memory.contents import STATES, UNITS, Contents
from hiermem.memory.hmt.module import HMTModule
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.records import Hit as Hit
from hiermem.memory.records import SegmentRecord as SegmentRecord
from hiermem.memory.records import UnitHit
from hiermem.memory.state_encoder import StateEncoder
from hiermem.memory.stored import Stored
from hiermem.memory.tier import TIERS, new_tiers, register_tier
from hiermem.memory.unit_index import UnitIndex, UnitQuery, UnitScale
from hiermem.retrieval.arena import TensorArena
from hiermem.retrieval.keys import (
    SEARCH_KEYS,
    LexicalKey,
    LexicalKeyConfig,
    Question,
    SearchKey,
    new_search_keys,
)
from hiermem.retrieval.keys.base import WIDEST
from hiermem.retrieval.store import RecallStore, StoreConfig, new_store
from hiermem.settings import check_settings

KEYS: dict[str, dict[str, Any]] = {"lexical": {}, "trained": {}}
"""Search keys without any others: `trained` where the model has its projections."""
BREADTH = 64
"""Segments, or units, that a search looks at first."""

register_tier(KVTier)


@dataclass
class LongTermConfig:
    """Settings of the long-term memory.

    Attributes:
        top_k: records that a question recalls; 0 switches recall off.
        store: the index behind the search.
        lexical: the part of the search key that needs no training.
        keys: settings of the search keys by name, from `hiermem.retrieval.keys.SEARCH_KEYS`; those of
            `lexical` but its weight stand above. Keys are sorted by name.
        tiers: settings of further tiers by name, from `hiermem.memory.tier.TIERS`.
    """

    top_k: int = 8
    store: StoreConfig = field(default_factory=StoreConfig)
    lexical: LexicalKeyConfig = field(default_factory=LexicalKeyConfig)
    keys: dict[str, dict[str, Any]] = field(default_factory=lambda: deepcopy(KEYS))
    tiers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.top_k < 0:
            raise InputError(f"top_k must not be negative, not {self.top_k}.")
        if self.lexical.dim > WIDEST or self.lexical.saturation > WIDEST:
            raise InputError(f"LexicalKeyConfig.dim and .saturation must be at most {WIDEST}.")
        self.keys = SEARCH_KEYS.check_all(self.keys)
        whole = [name for name, key in SEARCH_KEYS.items() if not key.of_units]
        if not set(self.keys) & set(whole):
            choice = ", ".join(whole)
            raise InputError(
                f"The long-term memory needs a search key of whole segments: add one of {choice}."
            )
        self.tiers = TIERS.check_all(self.tiers)
        nothing = {"projections": None, "state_encoder": None}
        new_search_keys(self.keys, config=self.lexical, **nothing)  # which refuse values, as do
        new_tiers(self.tiers)

    @property
    def has_units(self) -> bool:
        """Whether there are search keys of units."""
        return any(SEARCH_KEYS[name].of_units for name in self.keys)

    @property
    def has_states(self) -> bool:
        """Whether there are search keys made of the backbone's states."""
        return any(SEARCH_KEYS[name].of_states for name in self.keys)

    def without_states(self) -> "LongTermConfig":
        """The same without search keys made of the backbone's states."""
        keys = {name: key for name, key in self.keys.items() if not SEARCH_KEYS[name].of_states}
        return replace(self, keys=keys)


class LongTermMemory:
    """Records in document order. The last one may be *partial*: its segment is not complete yet.

    Only complete segments are in the store and in the keys' statistics, so that reading in pieces leaves
    the same memory as reading at once; a partial one is compared beside the store.

    Args:
        summary: the parameters of the memory embeddings, where the model makes them.
        state_encoder: of the search key `states`, where the model has one.

    Raises:
        InputError: what a search key needs is not installed.

    Attributes:
        keys: the parts of search keys of segments, side by side in one store.
        units: the index of sentences and rows, where there are search keys of those.
        key: the lexical key, whose statistics of words also choose passages. Where `keys` has none, it stands
            outside the store and is not searched by.
        summary: parameters of the memory embeddings, where one of `keys` is made of them; None: none is.
    """

    def __init__(
        self,
        config: LongTermConfig,
        summary: HMTModule | None = None,
        state_encoder: StateEncoder | None = None,
    ) -> None:
        self.config = config
        projections = summary if summary is not None and summary.config.search else None
        supplies = {"config": config.lexical, "projections": projections, "state_encoder": state_encoder}
        keys = new_search_keys(config.keys, **supplies)
        for key in keys:
            key.check_available()
        self.keys = [key for key in keys if not key.of_units]
        of_units = [key for key in keys if key.of_units]
        self.units = UnitIndex(of_units, config.store) if of_units else None
        lexical = [key for key in self.keys if isinstance(key, LexicalKey)]
        self.key = lexical[0] if lexical else LexicalKey(config.lexical)
        reads = any("projections" in key.supplied for key in self.keys)
        self.summary = projections if reads else None
        self._state_encoder = state_encoder if self.reads_states else None
        self.store: RecallStore = new_store(self.width, config.store)
        self.records: list[SegmentRecord] = []
        self.partial: SegmentRecord | None = None
        self._ids, self._utf8 = TensorArena(torch.int32), TensorArena(torch.uint8)

    def __len__(self) -> int:
        return len(self.records) + (self.partial is not None)

    @property
    def width(self) -> int:
        """Numbers of a segment's key.

        Raises:
            InputError: there are none, or too many.
        """
        width = sum(key.width for key in self.keys)
        if not 0 < width <= 2 * WIDEST:
            raise InputError(
                f"The search keys have {width} numbers together: give keys with 1 to {2 * WIDEST}."
            )
        return width

    @property
    def _others(self) -> list[SearchKey]:
        """The keys but the lexical one."""
        return [key for key in self.keys if key is not self.key]

    @property
    def all_keys(self) -> list[SearchKey]:
        """Those of segments and those of units."""
        return [*self.keys, *(self.units.keys if self.units is not None else [])]

    @property
    def reads_states(self) -> bool:
        """Whether a search key is made of the backbone's states."""
        return any(key.of_states for key in self.all_keys)

    @property
    def states_digest(self) -> str:
        """Hash of what search keys of the backbone's states are made by; empty where there are none."""
        return "".join(key.digest for key in self.all_keys if key.of_states)

    @property
    def digests(self) -> dict[str, str]:
        """Hashes of what keys depend on beside settings and texts, by key, where there is such."""
        return {f"search key {key.name}": key.digest for key in self.all_keys if key.digest}

    def write(self, records: Sequence[SegmentRecord]) -> None:
        """Keep complete segments; any partial one is replaced by them."""
        if records:
            units = [] if self.units is None else self.units.made(records, self._last)
            self.store.add(self._document_keys(records))
            if self.units is not None:
                self.units.add(units)
            for key in (self.key, *self._others):
                key.observe(records)
            for record in records:
                record.ids, record.utf8 = self._ids.keep(record.ids), self._utf8.keep(record.utf8)
                record.token_vectors = None  # they are in the keys
            self.records = [*self.records, *records]
            self.partial = None

    def copy(self) -> "LongTermMemory":
        """An independent memory with the same content; costs nothing, since what it holds is replaced, never
        changed in place."""
        twin = copy(self)
        twin.key, twin.store = self.key.copy(), self.store.copy()
        twin.keys = [twin.key if key is self.key else key.copy() for key in self.keys]
        twin.units = None if self.units is None else self.units.copy()
        return twin

    def count_statistics(self, of_others: Sequence[Mapping[str, Tensor]], removed: bool = False) -> None:
        """Count what other documents' keys have counted in the statistics of these keys, too.

        Args:
            of_others: their statistics, as `tensors` has them among the keys.
            removed: count it no longer.

        Raises:
            InputError: they are no such statistics, or a key cannot count several documents.
        """
        for key in (self.key, *self._others) if of_others else ():
            found = [self._statistics_of(key, each) for each in of_others]
            (key.remove_statistics if removed else key.add_statistics)(found)

    def _statistics_of(self, key: SearchKey, together: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The statistics of one key among those of all."""
        if key is self.key:
            return {name: tensor for name, tensor in together.items() if "." not in name}
        own = f"{key.name}."
        return {name.removeprefix(own): t for name, t in together.items() if name.startswith(own)}

    def unit_scale(self, question: Question) -> UnitScale | None:
        """Meaning of the scores of units; None: there are no search keys of units that know the question."""
        return None if self.units is None else self.units.scale(question)

    @property
    def _last(self) -> SegmentRecord | None:
        """The last complete segment."""
        return self.records[-1] if self.records else None

    def _document_keys(self, records: Sequence[SegmentRecord]) -> Tensor:
        """The records' search keys, ``[n, D]`` float32."""
        return torch.cat([key.document_keys(records) for key in self.keys], dim=1)

    def query_key(self, question: Question) -> Tensor:
        """The question's weighted key, ``[D]`` float32.

        Raises:
            NonFiniteError: it holds NaN or infinity.
        """
        query = torch.cat([key.weight_for(question) * key.query_key(question) for key in self.keys])
        if not query.isfinite().all():
            raise NonFiniteError("The search key of the question is not finite: load the model in float32.")
        return query

    def recall(
        self, question: Question, k: int, eligible: Callable[[SegmentRecord], bool] = lambda _: True
    ) -> list[Hit]:
        """The best ``k`` records that are ``eligible``, best first.

        A record's score is that of its own key and that of the best of its units together. Whatever the index
        of each finds first, these are the best of all, as far as the indexes are exact (the threshold
        algorithm: Fagin, Lotem and Naor, 2001).

        Raises:
            NonFiniteError: the question's key holds NaN or infinity.
        """
        query = self.query_key(question).unsqueeze(0)
        of_units = None if self.units is None else self.units.query(question)
        hits = (
            [] if self.partial is None or not eligible(self.partial) else [self._partial_hit(query, of_units)]
        )
        breadth = k if self.units is None else max(k, BREADTH)
        while k:
            count = min(breadth, len(self.store))
            found, bound = self._stored_hits(query, of_units, count, eligible, k)
            best = sorted([*hits, *found], key=lambda hit: (-hit.score, hit.segment))[:k]
            if bound == -math.inf or (len(best) == k and best[-1].score >= bound):
                return best
            breadth *= 4
        return []

    def _partial_hit(self, query: Tensor, of_units: UnitQuery | None) -> Hit:
        assert self.partial is not None
        score, units = float(query @ self._document_keys([self.partial]).T), list[UnitHit]()
        if self.units is not None and of_units is not None:
            units = self.units.partial(self.partial, self._last).hits(of_units)
        return _hit(len(self.records), score, self.partial, units)

    def _stored_hits(
        self,
        query: Tensor,
        of_units: UnitQuery | None,
        count: int,
        eligible: Callable[[SegmentRecord], bool],
        k: int,
    ) -> tuple[list[Hit], float]:
        """Of the ``count`` best by their own keys, and of the ``count`` best units, the ``k`` best that are
        eligible; and the score that those of all others do not exceed."""
        scores, ids = self.store.search(query, count)
        of_keys = {
            at: score for at, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True) if at >= 0
        }
        bound = float(scores[0, -1]) if count < len(self.store) else -math.inf
        if self.units is None or of_units is None:
            found = {at for at in of_keys if eligible(self.records[at])}
            return [Hit(at, of_keys[at], self.records[at]) for at in found], bound
        best, last = self.units.search(of_units, count)
        found = {at for at in of_keys.keys() | best if eligible(self.records[at])}
        others = sorted(found - of_keys.keys())
        of_keys |= zip(others, self.store.scores(query[0], others), strict=True)
        together = {at: of_keys[at] + self.units.best(at, of_units) for at in found}
        kept = sorted(found, key=lambda at: (-together[at], at))[:k]  # units of few are worth looking at
        hits = [_hit(at, of_keys[at], self.records[at], self.units.hits(at, of_units)) for at in kept]
        return hits, bound + max(last, 0.0)  # a segment without any text has no units

    # ---- saving

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything as tensors, by file name."""
        records = [*self.records, *([self.partial] if self.partial else [])]
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
            "keys": {"keys": self.store.keys, **self.key.state_dict(), **self._statistics_of_others()},
            "embeddings": {"embeddings": torch.stack(embeddings)} if embeddings else {},
            **({} if self.units is None else {UNITS: self.units.tensors()}),
            **({STATES: self._partial_vectors()} if self.reads_states else {}),
        }

    def _partial_vectors(self) -> dict[str, Tensor]:
        """Vectors of the partial record's tokens: ``ends [T]`` int64, ``vectors [T, W]`` float32."""
        found = None if self.partial is None else self.partial.token_vectors
        if found is None:
            return {"ends": torch.zeros(0, dtype=torch.int64), "vectors": torch.zeros(0, 0)}
        return {"ends": found.ends, "vectors": found.vectors}

    def _statistics_of_others(self) -> dict[str, Tensor]:
        """Statistics of the keys but the lexical one, as ``<key>.<name>``."""
        return {
            f"{key.name}.{name}": tensor for key in self._others for name, tensor in key.state_dict().items()
        }

    @classmethod
    def from_tensors(
        cls,
        config: LongTermConfig,
        files: dict[str, dict[str, Tensor]],
        summary: HMTModule | None = None,
        state_encoder: StateEncoder | None = None,
    ) -> "LongTermMemory":
        """The inverse of `tensors`; the index is built anew from the keys.

        Raises:
            ValueError: something is missing, left over or not as such a memory leaves it.
        """
        return cls.from_contents(config, Contents.read(files), summary, state_encoder)

    @classmethod
    def from_contents(
        cls,
        config: LongTermConfig,
        contents: Contents,
        summary: HMTModule | None = None,
        state_encoder: StateEncoder | None = None,
    ) -> "LongTermMemory":
        """The same from what `tensors` gave, checked.

        Raises:
            ValueError: it does not fit the settings.
        """
        memory = cls(config, summary, state_encoder)
        if memory.reads_states and state_encoder is not None:
            contents.check_width(state_encoder.width)
        memory.store.add(contents.keys)
        if memory.units is None and contents.units:
            raise ValueError("there is no search key for the units")
        if memory.units is not None:
            memory.units.load(contents.units, contents.records[: len(contents.keys)])
        memory.key.load_state_dict(contents.statistics)
        others = Stored(contents.statistics_of_others, "keys.")
        for key in memory._others:
            key.load_state_dict(others.within(key.name).all())
        others.done()
        count = len(contents.keys)
        memory.records, memory.partial = contents.records[:count], next(iter(contents.records[count:]), None)
        return memory

    # ---- copies

    def __copy__(self) -> "LongTermMemory":
        """Another one of the same records, store and key."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        supplied = {"summary": self.summary, "state_encoder": self._state_encoder}
        return {"config": self.config, "files": self.tensors(), **supplied}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = self.from_tensors(**state).__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> "LongTermMemory":
        """An independent memory; the parameters of the memory embeddings are shared, they are the model's."""
        config = deepcopy(self.config, memo)
        return self.from_tensors(config, self.tensors(), self.summary, self._state_encoder)


def _hit(segment: int, score: float, record: SegmentRecord, units: Sequence[UnitHit]) -> Hit:
    """A record that was found by its own key, of that ``score``, and by its best unit."""
    together = [UnitHit(unit.start, unit.end, score + unit.score, unit.own) for unit in units]
    return Hit(segment, max((unit.score for unit in together), default=score), record, together)
