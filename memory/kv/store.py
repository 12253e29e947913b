"""Keys and values of a segment's own tokens, of all heads that keep a cache, and how files call them.

Heads whose keys and values are equally wide stand in one bank, whatever their layers: layer by layer, by
their numbers. Heads of all banks keep equally many tokens of a segment, each its own.

Dimension names: H heads of a bank, K tokens of each, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.attention import numbers
from hiermem.memory.cache.kv_cache import KVCache, best_first
from hiermem.memory.kv.quantise import Packed, width_of
from hiermem.memory.stored import Stored, in_range

Head = tuple[int, int]
"""A layer, and one of its KV heads."""

LONGEST = 1 << 15
"""Tokens of a segment: places in it are int16."""


@dataclass(frozen=True)
class Bank:
    """Heads whose keys and values are equally wide.

    Attributes:
        groups: the cache's head groups that they are of.
        heads: all of them, in the order of the groups.
        widths: D of keys and of values.
    """

    groups: tuple[int, ...]
    heads: tuple[Head, ...]
    widths: tuple[int, int]


def banks_of(cache: KVCache) -> tuple[Bank, ...]:
    """All heads that keep a cache.

    Raises:
        InputError: keys could not be moved to other positions.
    """
    if all(shape.rotary is None for shape in cache.geometries):
        raise InputError(
            "This backbone has learned positions, and the tier kv moves keys to others: leave the tier out."
        )
    found: dict[tuple[int, int], tuple[list[int], list[Head]]] = {}
    for index, group in enumerate(cache.head_groups):
        shape = cache.geometries[group.layer]
        groups, heads = found.setdefault(shape.widths, ([], []))
        groups.append(index)
        heads += [(group.layer, head) for head in numbers(group.heads, shape.heads)]
    return tuple(Bank(tuple(groups), tuple(heads), widths) for widths, (groups, heads) in found.items())


@dataclass(frozen=True)
class HeadTokens:
    """Tokens of a bank's heads.

    Attributes:
        places: where they stand in their segment, ascending, ``[H, K]`` int16.
        keys: not rotated.
        values: of the same tokens.
    """

    places: Tensor
    keys: Packed
    values: Packed

    @classmethod
    def read(cls, stored: Stored, dtype: str, segment: int) -> "HeadTokens":
        """The same from a file.

        Raises:
            ValueError: something is missing, or not as such tokens are.
        """
        places = in_range(stored.take("places", torch.int16, None, None), 0, segment - 1, "a place")
        if not bool((places.diff(dim=-1) > 0).all()):
            raise ValueError("places are not in order")
        heads, tokens = places.shape
        keys, values = (Packed.read(stored.within(name), heads, tokens, dtype) for name in ("keys", "values"))
        return cls(places, keys, values)

    def fits(self, bank: Bank, dtype: str) -> bool:
        """Whether these are tokens of a bank's heads."""
        widths = tuple(packed.numbers.shape[-1] for packed in (self.keys, self.values))
        expected = tuple(width_of(width, dtype) for width in bank.widths)
        return len(self.places) == len(bank.heads) and widths == expected


SegmentTokens = tuple[HeadTokens, ...]
"""Tokens of a segment, by bank."""


def read_segment(stored: Stored, dtype: str, segment: int) -> SegmentTokens:
    """Tokens of a segment from a file.

    Raises:
        ValueError: something is missing, left over, or not as such tokens are.
    """
    banks: list[HeadTokens] = []
    while bank := stored.within(str(len(banks))):
        banks.append(HeadTokens.read(bank, dtype, segment))
        bank.done()
    stored.done()
    if not banks:
        raise ValueError("a segment has no keys and values")
    return tuple(banks)


def joined(parts: Sequence[SegmentTokens]) -> SegmentTokens:
    """Tokens of one segment that came one after the other."""
    return parts[0] if len(parts) == 1 else tuple(map(_joined, zip(*parts, strict=True)))


def _joined(parts: Sequence[HeadTokens]) -> HeadTokens:
    def together(several: Sequence[Packed]) -> Packed:
        scales = [packed.scale for packed in several if packed.scale is not None]
        return Packed(
            torch.cat([packed.numbers for packed in several], dim=1),
            torch.cat(scales, dim=1) if scales else None,
        )

    return HeadTokens(
        torch.cat([part.places for part in parts], dim=1),
        together([part.keys for part in parts]),
        together([part.values for part in parts]),
    )


@dataclass(frozen=True)
class Newest:
    """The tokens that were read last, as the cache still holds them all.

    Attributes:
        cache: of one row.
        banks: its heads.
        num_tokens: tokens that were read.
    """

    cache: KVCache
    banks: tuple[Bank, ...]
    num_tokens: int

    def pack(self, first: int, end: int, begin: int, keep: float, dtype: str) -> SegmentTokens:
        """Keys and values of the tokens from ``first`` to ``end``, on the CPU.

        Of each head those stay that the policy scores highest at this moment; of equal ones, the newer.

        Args:
            begin: where their segment begins.
            keep: share of them that stays.
            dtype: their format.
        """
        count = end - first
        kept = min(max(round(keep * count), 1), count)
        return tuple(self._bank(bank, first, count, kept, begin, dtype) for bank in self.banks)

    def _bank(self, bank: Bank, first: int, count: int, kept: int, begin: int, dtype: str) -> HeadTokens:
        columns = zip(*(self._group(index, first, count, kept) for index in bank.groups), strict=True)
        chosen, keys, values = (torch.cat(column) for column in columns)
        places = (chosen + (first - begin)).to(torch.int16).cpu()
        return HeadTokens(places, *(Packed.of(states, dtype).on_the_cpu() for states in (keys, values)))

    def _group(self, index: int, first: int, count: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a head group's tokens from ``first`` on which stay, ``[G, K]`` int64, and their keys, without
        rotation, and values, ``[G, K, D]`` each."""
        layer, held = self.cache.layers[index], self.cache.layers[index].held()
        assert held is not None and layer.position_ids is not None
        start = layer.tokens - (self.num_tokens - first)  # all that was read last stands in the last slots
        keys, values, ids = (tensor[0, :, start : start + count] for tensor in (*held, layer.position_ids))
        chosen = torch.arange(count, device=ids.device).expand_as(ids)
        if kept < count:
            scores = self.cache.scores(index, (self.num_tokens,))[:, :, start : start + count]
            chosen = best_first(scores)[0, :, :kept].sort(dim=-1).values
            keys, values = (states.gather(1, _wide(chosen, states)) for states in (keys, values))
            ids = ids.gather(1, chosen)
        rotary = self.cache.geometries[self.cache.head_groups[index].layer].rotary
        return chosen, keys if rotary is None else rotary.turn(keys[None], -ids[None])[0], values


def _wide(slots: Tensor, states: Tensor) -> Tensor:
    return slots.unsqueeze(-1).expand(-1, -1, states.shape[-1])
