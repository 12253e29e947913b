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
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.records import Hit, SegmentRecord
from hiermem.registry import Registry
from hiermem.retrieval.keys import Question


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

    def evicted(self, layer: int, tokens: EvictedTokens) -> None:
        """Take in what heads of a layer have lost at a decision."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())


TIERS: Registry[Tier] = Registry("tier", Tier)
register_tier = TIERS.register


def new_tiers(settings: Mapping[str, Mapping[str, Any]]) -> tuple[Tier, ...]:
    """Empty tiers by name, with their settings.

    Raises:
        InputError: there is no such tier or setting, or a value is refused.
    """
    return tuple(TIERS.build(name, chosen) for name, chosen in settings.items())


@dataclass(frozen=True)
class EvictionHook:
    """Tells tiers of what a decision of the working memory has evicted: called for each head group."""

    tiers: tuple[Tier, ...]

    @classmethod
    def of(cls, tiers: Sequence[Tier]) -> "EvictionHook | None":
        """The hook for the tiers that ask for it; None: none does."""
        asking = tuple(tier for tier in tiers if tier.wants_evicted)
        return cls(asking) if asking else None

    def __call__(self, group: HeadGroup, before: LayerCache, after: LayerCache) -> None:
        """Tell the tiers what ``group`` has lost between two moments of its cache."""
        tokens = EvictedTokens.between(group.heads, before, after)
        if tokens is not None:
            for tier in self.tiers:
                tier.evicted(group.layer, tokens)
