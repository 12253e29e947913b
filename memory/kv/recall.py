"""Stored keys and values put back into a working memory, in front of what is read next.

Sinks or a lead come first, then the chosen tokens of each segment, in document order, side by side: each has
one position for all heads, of which a head holds what it has kept. The memory that they come from stays as it
is.

Dimension names: H heads of a bank, G KV heads of a group, T tokens of a head, N chosen tokens, D head width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.attention import numbers
from hiermem.memory.cache.head_groups import HeadGroup
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.kv.prompt import KVChange, Lead
from hiermem.memory.kv.quantise import EXACT
from hiermem.memory.kv.store import Bank, Head, HeadTokens, Newest
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.working import WorkingMemory

Chosen = Mapping[int, Tensor | None]
"""Which tokens of which segments, ``[tokens of a segment]`` bool; None: all."""


@dataclass(frozen=True)
class Recalled:
    """A working memory that holds tokens of a document, and where they stood there.

    Attributes:
        working: it counts them as the first N tokens that it read; the next are read behind them.
        positions: for each of these, its position in the document, ``[N]`` int64; -1 for those of a lead.
    """

    working: WorkingMemory
    positions: Tensor


def recalled(
    tier: KVTier,
    chosen: Chosen,
    working: WorkingMemory,
    dtype: torch.dtype,
    device: torch.device,
    lead: Lead | None = None,
) -> Recalled:
    """Put chosen tokens of complete segments before what ``working`` reads next.

    Its policy goes on as ever: one that evicts does so when an interval is over, and does not know yet what
    these tokens are worth. Mamba heads begin anew.

    Args:
        working: an empty one of one row, without memory embeddings; it stays as it is.
        dtype: of the backbone's states.
        device: where it computes.
        lead: what stands first in place of the document's sinks.

    Raises:
        InputError: there is no such segment, or no such heads, or ``working`` is not as it must be.
    """
    excerpts, positions = _excerpts(tier, chosen, None if lead is None else lead.num_tokens)
    if not len(positions):
        return Recalled(working.copy(), positions)
    heads: dict[Head, tuple[_BankTokens, int]] = {}
    for index, bank in enumerate(tier.banks):
        tokens = _BankTokens.of(bank, [excerpt[index] for excerpt in excerpts], device)
        if lead is not None:
            tokens = tokens.changed(*lead.changes[index : index + 1]).behind(lead.tokens[index])
        tokens = tokens.to(dtype)
        heads |= {head: (tokens, row) for row, head in enumerate(bank.heads)}
    layers = [_layer(group, working, heads, len(positions)) for group in working.cache.head_groups]
    return Recalled(working.holding(len(positions), layers), positions)


def lead_of(working: WorkingMemory, banks: Sequence[Bank]) -> Lead:
    """Keys and values of all that ``working`` has read.

    Args:
        working: of one row, before its first decision.
        banks: the heads of its cache (`banks_of`), or of one of the same settings.
    """
    (tokens,) = working.num_tokens
    return Lead(Newest(working.cache, tuple(banks), tokens).pack(0, tokens, 0, 1.0, EXACT))


_Excerpt = tuple[HeadTokens, Tensor]
"""Tokens of a bank, and for each place in their segment the position from here, -1 where it is not chosen."""


def _excerpts(tier: KVTier, chosen: Chosen, lead: int | None) -> tuple[list[list[_Excerpt]], Tensor]:
    """Tokens to be put side by side, by bank; and the document positions of all that then stands there,
    ``[N]``.

    Args:
        lead: how many tokens stand before them, in place of the sinks; None: the sinks do.
    """
    sinks = torch.arange(0 if tier.sinks is None else tier.sinks[0].places.shape[1])
    sinks_stand = sinks if lead is None else torch.full_like(sinks, -1)
    positions = [sinks if lead is None else torch.full((lead,), -1)]
    found, end = [], len(positions[0])
    for segment in sorted(chosen):
        places = torch.arange(tier.segment)
        position = segment * tier.segment + places
        mask, is_sink = _mask(chosen[segment], tier.segment), position < len(sinks)
        if lead is None:
            mask = mask & ~is_sink
        stand = (mask.cumsum(0) - 1 + end).masked_fill(~mask, -1)
        if lead is not None:
            sinks_stand[position[is_sink]] = stand[is_sink]
        found.append([(tokens, stand) for tokens in tier.tokens_of(segment)])
        positions.append(position[mask])
        end += len(positions[-1])
    if tier.sinks is not None:
        found.append([(tokens, sinks_stand) for tokens in tier.sinks])
    return found, torch.cat(positions)


def _mask(chosen: Tensor | None, tokens: int) -> Tensor:
    if chosen is None:
        return torch.ones(tokens, dtype=torch.bool)
    if chosen.dtype != torch.bool or chosen.shape != (tokens,):
        raise InputError(f"Tokens of a segment are chosen by {tokens} truth values.")
    return chosen.cpu()


@dataclass(frozen=True)
class _BankTokens:
    """Tokens of a bank's heads.

    Attributes:
        positions: where they stand from here, -1 where a token is not chosen, ``[H, T]`` int64.
        keys: ``[H, T, D]``, not rotated.
        values: ``[H, T, D]``.
    """

    positions: Tensor
    keys: Tensor
    values: Tensor

    @cached_property
    def are_in_order(self) -> bool:
        """Whether all heads hold tokens in their order, and nothing else."""
        return bool((self.positions >= 0).all() and (self.positions.diff(dim=1) > 0).all())

    @classmethod
    def of(cls, bank: Bank, excerpts: Sequence[_Excerpt], device: torch.device) -> "_BankTokens":
        """Tokens of which each has a position of its own, or none; float32."""
        heads = len(bank.heads)
        nothing = (torch.zeros(heads, 0, width) for width in bank.widths)
        found = [(torch.zeros(heads, 0, dtype=torch.int64), *nothing)]
        for tokens, stand in excerpts:
            positions = stand[tokens.places.long()]
            index = (positions >= 0).any(0).nonzero().flatten()  # few of a segment's tokens are unpacked
            keys, values = (packed.of_tokens(index).unpacked() for packed in (tokens.keys, tokens.values))
            found.append((positions[:, index], keys, values))
        return cls(*(torch.cat(parts, dim=1).to(device) for parts in zip(*found, strict=True)))

    def changed(self, *changes: KVChange) -> "_BankTokens":
        """The same after changes of the keys and values."""
        keys, values = self.keys, self.values
        for change in changes:
            keys, values = change(keys, values)
        return replace(self, keys=keys, values=values)

    def behind(self, first: HeadTokens) -> "_BankTokens":
        """The same behind others."""
        pairs = (
            (first.places.long(), self.positions),
            (first.keys.unpacked(), self.keys),
            (first.values.unpacked(), self.values),
        )
        return _BankTokens(*(torch.cat((one.to(other.device), other), dim=1) for one, other in pairs))

    def to(self, dtype: torch.dtype) -> "_BankTokens":
        """The same with keys and values in another dtype."""
        return replace(self, keys=self.keys.to(dtype), values=self.values.to(dtype))


def _layer(
    group: HeadGroup,
    working: WorkingMemory,
    heads: Mapping[Head, tuple[_BankTokens, int]],
    num_tokens: int,
) -> LayerCache:
    """The cache of a group of heads that holds their tokens, keys rotated for position 0."""
    shape = working.geometries[group.layer]
    try:
        found = [heads[group.layer, head] for head in numbers(group.heads, shape.heads)]
    except KeyError:
        raise InputError("Keys and values are recalled into the heads that they were read by.") from None
    tokens, rows = found[0][0], [row for _, row in found]
    several = slice(rows[0], rows[-1] + 1)  # a view, where the heads of a layer stand together
    own = several if rows == [*range(several.start, several.stop)] else rows
    positions, keys, values = (t[own][None] for t in (tokens.positions, tokens.keys, tokens.values))
    layer = replace(
        shape.cache,
        positions=positions,
        position_ids=torch.zeros_like(positions, dtype=torch.int32),
        state={
            name: torch.zeros(*positions.shape, *width, device=positions.device)
            for name, width in working.policy.state(num_tokens).items()
        },
        **shape.cache.packed(keys, values),
    )
    if tokens.are_in_order:
        return layer
    held = int((positions >= 0).sum(-1).max())
    in_order, slots = positions.sort(dim=-1, stable=True)  # -1 puts empty slots in front
    empty = in_order[..., positions.shape[-1] - held :] < 0
    return layer.gathered(slots[..., positions.shape[-1] - held :], empty, bool(empty.any()))
