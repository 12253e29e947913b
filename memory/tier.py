"""Tier of the long-term memory: keeps something of a document beside its records, and recalls by it.

A tier is one file and one line:

    @dataclass
    class EvictedKV(Tier):
        name: ClassVar[str] = "evicted_kv"
        wants_evicted: ClassVar[bool] = True
        ...

    register_tier(EvictedKV)

and `LongTermConfig(tiers={"evicted_kv": {}})` switches it on. `LongTermMemory`, which holds the records
themselves, is no `Tier`: it is always there, and its `write` and `recall` are called beside those of tiers.

Dimension names: B batch, G KV heads, T cached tokens, E evicted tokens, D head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from hiermem.memory.attention import Heads
from hiermem.memory.cache.head_groups import HeadGroup
from hiermem.memory.cache.kv_cache import EvictionCallback, KVCache
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.records import Hit, SegmentRecord
from hiermem.registry import Registry
from hiermem.retrieval.keys import Question
from hiermem.retrieval.parts import Part


@dataclass(frozen=True)
class EvictedTokens:
    """Tokens that heads of one layer have just lost, in document order; heads may lose different numbers.

    Attributes:
        heads: which of the layer's KV heads, an index.
        keys: ``[B, G, E, D]``, rotated at ``position_ids``.
        values: ``[B, G, E, D']``.
        positions: true positions, ``[B, G, E]`` int64, -1 where a head lost fewer.
        position_ids: frame positions that the keys are rotated at, ``[B, G, E]`` int32.
    """

    heads: Heads
    keys: Tensor
    values: Tensor
    positions: Tensor
    position_ids: Tensor

    @classmethod
    def between(cls, heads: Heads, before: LayerCache, after: LayerCache) -> "EvictedTokens | None":
        """The tokens of one cache that the later one has no more; None: there are none."""
        held, positions = before.held(), before.positions
        if held is None or positions is None or after.positions is positions:
            return None
        assert before.position_ids is not None
        gone = positions >= 0
        if after.positions is not None:
            place = torch.searchsorted(after.positions, positions).clamp(max=after.positions.shape[-1] - 1)
            gone &= after.positions.gather(-1, place) != positions
        most = int(gone.sum(-1).max())
        if not most:
            return None
        order = gone.int().sort(dim=-1, descending=True, stable=True).indices[..., :most]
        wide = order.unsqueeze(-1)
        keys, values = (tensor.gather(2, wide.expand(-1, -1, -1, tensor.shape[-1])) for tensor in held)
        lost = positions.masked_fill(~gone, -1).gather(-1, order)
        return cls(heads, keys, values, lost, before.position_ids.gather(-1, order))


@dataclass
class Tier(ABC):
    """Part of the long-term memory of one document.

    A subclass is a dataclass: its fields are its settings. Reading copies a memory before it changes it, so
    what a tier holds is replaced, never written in place.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    supplied: ClassVar[frozenset[str]] = frozenset()
    wants_evicted: ClassVar[bool] = False
    """Whether `evicted` is called; it costs a copy of what is evicted."""
    wants_cached: ClassVar[bool] = False
    """Whether `cached` is called."""

    def fit(self, cache: KVCache, undecided: range, segment: int) -> None:  # noqa: B027 - few need it
        """Take note of the working memory that it will stand beside; called before anything is read.

        Args:
            cache: of that working memory, in which a loaded memory goes on.
            undecided: positions of the tokens that were read since its last decision.
            segment: tokens of a segment.

        Raises:
            InputError: it cannot stand beside such a one.
            ValueError: what it was loaded with does not fit it.
        """

    @abstractmethod
    def write(self, records: Sequence[SegmentRecord]) -> None:
        """Take complete segments in, in document order."""

    @abstractmethod
    def recall(self, question: Question, k: int) -> list[Hit]:
        """At most ``k`` records for a question, best first."""

    @abstractmethod
    def copy(self) -> Self:
        """An independent one with the same content; shares tensors, which are never written in place."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, by name."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor], records: Sequence[SegmentRecord]) -> None:
        """Take the place of a tier that gave these tensors.

        Args:
            records: all complete ones of the document.

        Raises:
            ValueError: something is missing, left over or not as such a tier leaves it.
        """

    def series(self) -> tuple[Part, ...]:
        """Parts of it that will never change, in the order in which they came; not among `tensors`.

        Each is written once, in a file of its own, and mapped from there.
        """
        return ()

    def load_series(self, parts: Sequence[Part]) -> None:
        """Take the place of a tier that gave this `series`; `load` follows.

        Raises:
            ValueError: they are not as such a tier leaves them.
        """
        if parts:
            raise ValueError(f"the tier {self.name} has files that are not its own")

    def cached(self, cache: KVCache, num_tokens: int) -> None:
        """Look at what is cached, before each decision evicts from it and when a segment is complete, before
        `write`.

        Args:
            num_tokens: tokens that were read; all since the last decision are in the cache.
        """
        raise NotImplementedError

    def evicted(self, layer: int, tokens: EvictedTokens) -> None:
        """Take in what heads of a layer have lost at a decision."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        files = (self.tensors(), *self.series())
        return sum(tensor.numel() * tensor.element_size() for file in files for tensor in file.values())

    def expected_bytes(self, tokens: int, cache: KVCache) -> int:
        """About how many bytes it will hold of a document of so many tokens; 0 where that is little."""
        return 0


TIERS: Registry[Tier] = Registry("tier", Tier)
register_tier = TIERS.register


def new_tiers(settings: Mapping[str, Mapping[str, Any]]) -> tuple[Tier, ...]:
    """Empty tiers by name, with their settings.

    Raises:
        InputError: there is no such tier or setting, or a value is refused.
    """
    return tuple(TIERS.build(name, chosen) for name, chosen in settings.items())


@dataclass(frozen=True)
class CacheListener:
    """Tells tiers of the working memory's cache: what is in it, and what a decision has evicted.

    Attributes:
        of_cached: the tiers that want to see what is cached.
        of_evicted: the tiers that want what is evicted.
    """

    of_cached: tuple[Tier, ...]
    of_evicted: tuple[Tier, ...]

    @classmethod
    def of(cls, tiers: Sequence[Tier]) -> "CacheListener | None":
        """The listener for the tiers that ask for it; None: none does."""
        of_cached = tuple(tier for tier in tiers if tier.wants_cached)
        of_evicted = tuple(tier for tier in tiers if tier.wants_evicted)
        return cls(of_cached, of_evicted) if of_cached or of_evicted else None

    def cached(self, cache: KVCache, num_tokens: int) -> None:
        """Show the tiers what is cached."""
        for tier in self.of_cached:
            tier.cached(cache, num_tokens)

    @property
    def evicted(self) -> EvictionCallback | None:
        """Callback of each head group's eviction; None: nobody asks."""
        return self._evicted if self.of_evicted else None

    def _evicted(self, group: HeadGroup, before: LayerCache, after: LayerCache) -> None:
        """Tell the tiers what ``group`` has lost between two moments of its cache."""
        tokens = EvictedTokens.between(group.heads, before, after)
        if tokens is not None:
            for tier in self.of_evicted:
                tier.evicted(group.layer, tokens)
