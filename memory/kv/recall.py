"""Stored keys and values put back into a working memory, in front of what is read next.

Sinks or a lead come first, then the chosen tokens of each segment, in document order, side by side: each has
one position for all heads, of which a head holds what it has kept. The memory that they come from stays as it
is.

Dimension names: H heads of a bank, G KV heads of a group, T tokens of a head, N chosen tokens, D head width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.attention import numbers
from hiermem.memory.cache.head_groups import HeadGroup
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.kv.quantise import EXACT
from hiermem.memory.kv.store import Head, HeadTokens, Newest, SegmentTokens
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
    lead: SegmentTokens | None = None,
) -> Recalled:
    """Put chosen tokens of complete segments before what ``working`` reads next.

    Its policy goes on as ever: one that evicts does so when an interval is over, and does not know yet what
    these tokens are worth. Mamba heads begin anew.

    Args:
        working: an empty one of one row, without memory embeddings; it stays as it is.
        dtype: of the backbone's states.
        device: where it computes.
        lead: what stands first in place of the document's sinks, as `lead_of` gives it.

    Raises:
        InputError: there is no such segment, or no such heads, or ``working`` is not as it must be.
    """
    excerpts, positions = _excerpts(tier, chosen, lead)
    if not len(positions):
        return Recalled(working.copy(), positions)
    banks = [_BankTokens.of(several, dtype, device) for several in zip(*excerpts, strict=True)]
    heads = {head: (tokens, row) for tokens, bank in zip(banks, tier.banks, strict=True)
             for row, head in enumerate(bank.heads)}  # fmt: skip
    layers = [_layer(group, working, heads, len(positions)) for group in working.cache.head_groups]
    return Recalled(working.holding(len(positions), layers), positions)


def lead_of(tier: KVTier, working: WorkingMemory) -> SegmentTokens:
    """Keys and values of all that ``working`` has read, of the heads that ``tier`` keeps.

    Args:
        working: of one row and of the settings that the document was read with, before its first decision.
    """
    (tokens,) = working.num_tokens
    return Newest(working.cache, tier.banks, tokens).pack(0, tokens, 0, 1.0, EXACT)


_Excerpt = tuple[HeadTokens, Tensor]
"""Tokens of a bank, and for each place in their segment the position from here, -1 where it is not chosen."""


def _excerpts(
    tier: KVTier, chosen: Chosen, lead: SegmentTokens | None
) -> tuple[list[list[_Excerpt]], Tensor]:
    """Tokens to be put side by side, by bank; and their positions in the document, ``[N]``."""
    sinks = torch.arange(0 if tier.sinks is None else tier.sinks[0].places.shape[1])
    found, positions, sinks_stand = [], [sinks], sinks
    if lead is not None:
        stand = torch.arange(lead[0].places.shape[1])
        found, positions = [[(tokens, stand) for tokens in lead]], [torch.full_like(stand, -1)]
        sinks_stand = torch.full_like(sinks, -1)
    end = len(positions[0])
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

    @classmethod
    def of(cls, excerpts: Sequence[_Excerpt], dtype: torch.dtype, device: torch.device) -> "_BankTokens":
        """Tokens of which each has a position of its own, or none."""
        found = []
        for tokens, stand in excerpts:
            positions = stand[tokens.places.long()]
            wanted = (positions >= 0).any(0).nonzero().flatten()  # few of a segment's tokens are unpacked
            keys, values = (packed.of_tokens(wanted).unpacked() for packed in (tokens.keys, tokens.values))
            found.append((positions[:, wanted], keys, values))
        positions, keys, values = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return cls(positions.to(device), keys.to(device, dtype), values.to(device, dtype))


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
    positions, keys, values = (t[rows][None] for t in (tokens.positions, tokens.keys, tokens.values))
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
    held = int((positions >= 0).sum(-1).max())
    in_order, slots = positions.sort(dim=-1, stable=True)  # -1 puts empty slots in front
    empty = in_order[..., positions.shape[-1] - held :] < 0
    return layer.gathered(slots[..., positions.shape[-1] - held :], empty, bool(empty.any()))
