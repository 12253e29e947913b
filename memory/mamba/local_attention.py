"""Sinks and sliding window of Mamba heads: the document's first tokens, the last, and the segment's prompt.

Heads that look near still need two things exactly, whatever their state remembers: the tokens right before
the query, and the first, where attention goes that wants nothing (StreamingLLM, arXiv 2309.17453;
DuoAttention, arXiv 2410.10819). There is a fixed number of them, so they belong to the state, not to a cache.

Dimension names: B batch, G' replaced KV groups of a layer, R query heads of a group, H' = G' R, T columns of
a chunk, of which Q are tokens and T' those without the lead, D head width, E = 2 D (keys beside values), s
first tokens, w last tokens (the query's own among them), P columns of a prompt, L queries of a block, n
blocks, S = P + s + w - 1 + L.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.memory.chunk import Chunk, additive, in_order, real_first

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of queries ``[B, G, Q, D]`` over keys and values ``[B, G, S, D]`` under an additive mask, as the
backbone computes it."""


@dataclass(frozen=True)
class SinkWindowKV:
    """Keys, rotated as they were read, beside values, in the backbone's dtype.

    Attributes:
        first: of the document's first tokens, ``[B, G', s, E]``.
        last: of the newest tokens, ``[B, G', w - 1, E]``.
        prompt: of what was read before the present segment, ``[B, G', P, E]``.
    """

    first: Tensor
    last: Tensor
    prompt: Tensor

    @classmethod
    def nothing(cls, like: Tensor, sinks: int, window: int) -> "SinkWindowKV":
        """Where nothing was read yet; ``like [B, G', ·, E]``."""
        B, G, _, E = like.shape
        return cls(*(like.new_zeros(B, G, columns, E) for columns in (sinks, window - 1, 0)))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {"first": self.first, "last": self.last, "prompt": self.prompt}


class Mask:
    """What queries see, in the shapes that layers want.

    Args:
        visible: ``[B, n, L, S]`` bool.
    """

    def __init__(self, visible: Tensor) -> None:
        self._visible = visible.flatten(0, 1).unsqueeze(1)
        self._made: dict[tuple[int, torch.dtype], Tensor] = {}

    def of(self, repeats: int, dtype: torch.dtype) -> Tensor:
        """Additive mask ``[B * n, 1, repeats * L, S]``."""
        key = (repeats, dtype)
        if key not in self._made:
            self._made[key] = additive(self._visible, repeats, dtype)
        return self._made[key]


@dataclass(frozen=True)
class LocalAttentionPlan:
    """Who sees what in a chunk; the same for all heads of layers with the same sliding window.

    Attributes:
        lead: columns before the tokens.
        before: what those see of each other.
        order: in which order each row's other columns are read, ``[B, T']`` int64; None: as they stand.
        block: L.
        seen: what the others see; None: all.
        first: which column each of the document's first tokens is, ``[B, s]`` int64, and which of them are
            new, ``[B, s]`` bool; None: they were all read before.
        starting: rows that take the new prompt, ``[B]`` bool; None: all.
        end: tokens of each row, ``[B]`` int64; None: as many as columns are tokens.
        tokens: Q.
    """

    lead: int
    before: Mask
    order: Tensor | None
    block: int
    seen: Mask | None
    first: tuple[Tensor, Tensor] | None
    starting: Tensor | None
    end: Tensor | None
    tokens: int


def plan_local_attention(
    chunk: Chunk, sinks: int, window: int, prompt: int, there: Tensor | None, sliding: int | None = None
) -> LocalAttentionPlan:
    """How Mamba heads look at a chunk.

    Args:
        chunk: the tokens that are read, and what is read around them.
        sinks, window, prompt: s, w and P.
        there: which columns of the prompt may be seen, ``[B, P]`` bool; None: all.
        sliding: the layer's sliding window; None: there is none.
    """
    device, Q = chunk.positions.device, chunk.positions.shape[1]
    body, around = Q + chunk.tail, bool(chunk.lead or chunk.tail)
    L = min(window, body)
    begun, valid = (torch.tensor(count, device=device) for count in (chunk.seen, chunk.valid))
    first = torch.arange(sinks, device=device) - begun.unsqueeze(1)  # counted from the chunk's first token
    alone = body == 1 and not around and not chunk.padded and there is None and sliding is None
    everything = alone and min(chunk.seen) >= sinks + window - 1
    causal = torch.ones(chunk.lead, chunk.lead, dtype=torch.bool, device=device).tril()
    before = causal & there.unsqueeze(1) if chunk.lead and there is not None else causal[None]
    return LocalAttentionPlan(
        chunk.lead,
        Mask(before.unsqueeze(1)),
        _order(Q, chunk.tail, valid) if chunk.tail and chunk.padded else None,
        L,
        None if everything else Mask(_seen(body, L, window, first, begun, valid, prompt, there, sliding)),
        (first.clamp(0, body - 1), (first >= 0) & (first < valid.unsqueeze(1)))
        if min(chunk.seen) < sinks
        else None,
        None if all(chunk.starting) else torch.tensor(chunk.starting, device=device),
        valid if chunk.padded else None,
        Q,
    )


def _seen(
    body: int,
    L: int,
    window: int,
    first: Tensor,
    begun: Tensor,
    valid: Tensor,
    prompt: int,
    there: Tensor | None,
    sliding: int | None,
) -> Tensor:
    """What the queries of each block see, ``[B, n, L, S]`` bool.

    A layer's sliding window is measured as attention measures it: all that follows the tokens of a row stands
    at one place, right after the last.

    Args:
        body: T'.
        first: columns of the first tokens, ``[B, s]``; begun, valid: tokens before and in the chunk, ``[B]``.
        L, window, prompt, there, sliding: as in `plan_local_attention`.
    """
    query = torch.arange(-(-body // L) * L, device=begun.device).view(-1, L, 1)
    key = query[:, :1] + torch.arange(1 - window, L, device=begun.device)  # [n, 1, w - 1 + L]
    begun, valid, first = begun.view(-1, 1, 1, 1), valid.view(-1, 1, 1, 1), first[:, None, None]
    near = (key <= query) & (key > query - window) & (key >= -begun)
    far = (first <= query - window) & (first < valid)
    if sliding is not None:
        reached = torch.minimum(query, valid) - sliding
        near, far = near & ((key > reached) | (key >= valid)), far & (first > reached)
    shown = torch.ones(len(begun), prompt, dtype=torch.bool, device=begun.device) if there is None else there
    always = shown[:, None, None].expand(-1, *query.shape[:2], -1)
    return torch.cat((always, far, near), dim=-1)


def _order(Q: int, tail: int, valid: Tensor) -> Tensor:
    """What follows the tokens right after each row's own, ``[B, Q + tail]``."""
    columns = torch.arange(Q + tail, device=valid.device)
    return real_first((columns < valid.unsqueeze(1)) | (columns >= Q))


def local_attention(
    query: Tensor, key: Tensor, value: Tensor, view: LocalAttentionPlan, before: SinkWindowKV, attend: Attend
) -> tuple[Tensor, SinkWindowKV]:
    """Softmax attention to what is near, ``[B, H', T, D]``, and what is near after the chunk.

    Args:
        query: ``[B, H', T, D]``; key, value: ``[B, G', T, D]``, all rotated at the chunk's frames.
        before: what was near before it.
        attend: the backbone's attention.
    """
    pairs, queries = torch.cat((key, value), dim=-1), query.unflatten(1, (key.shape[1], -1))
    lead, body = pairs[:, :, : view.lead], pairs[:, :, view.lead :]
    asked = queries[:, :, :, view.lead :]  # [B, G', R, T', D]
    if view.order is not None:
        body, asked = in_order(body, view.order), in_order(asked, view.order)
    prompt = before.prompt
    if view.lead and view.starting is not None and prompt.shape[2]:
        prompt = torch.where(view.starting.view(-1, 1, 1, 1), lead, prompt)
    elif view.lead:
        prompt = lead.clone()  # a view would keep the whole chunk
    first = before.first
    if view.first is not None:
        place, new = view.first
        first = torch.where(new[:, None, :, None], in_order(body, place), first)
    stream = torch.cat((before.last, body), dim=2)
    said = _over_blocks(asked, stream, torch.cat((prompt, first), dim=2), view, attend)
    if view.order is not None:
        said = in_order(said, view.order.argsort(dim=1))
    if view.lead:
        asking = queries[:, :, :, : view.lead].unsqueeze(1)
        alone = _over(asking, lead.unsqueeze(1), view.before, attend).squeeze(1)
        said = torch.cat((alone, said), dim=3)
    count = before.last.shape[2]
    if view.end is None:
        last = stream[:, :, view.tokens : view.tokens + count]
    else:
        last = in_order(stream, view.end.unsqueeze(1) + torch.arange(count, device=stream.device))
    return said.flatten(1, 2), SinkWindowKV(first, last.clone(), prompt)


def _over_blocks(
    asked: Tensor, stream: Tensor, always: Tensor, view: LocalAttentionPlan, attend: Attend
) -> Tensor:
    """Attention of ``asked [B, G', R, T', D]`` to the last tokens in ``stream [B, G', w - 1 + T', E]`` and to
    what stands before them, ``[B, G', P + s, E]``; in blocks, as no query reaches further than the last."""
    T, L = asked.shape[3], view.block
    missing, blocks = -T % L, -(-T // L)
    if missing:
        asked, stream = (F.pad(tensor, (0, 0, 0, missing)) for tensor in (asked, stream))
    reach = stream.shape[2] - blocks * L + L
    windows = stream.unfold(2, reach, L).permute(0, 2, 1, 4, 3)  # [B, n, G', w - 1 + L, E]
    pairs = torch.cat((always.unsqueeze(1).expand(-1, blocks, -1, -1, -1), windows), dim=3)
    rows = asked.unflatten(3, (blocks, L)).permute(0, 3, 1, 2, 4, 5)  # [B, n, G', R, L, D]
    return _over(rows, pairs, view.seen, attend).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)[:, :, :, :T]


def _over(rows: Tensor, pairs: Tensor, mask: Mask | None, attend: Attend) -> Tensor:
    """Attention of ``rows [B, n, G', R, L, D]`` to keys beside values ``[B, n, G', S, E]``, shaped so."""
    together, width = pairs.flatten(0, 1), rows.shape[-1]
    said = attend(
        rows.flatten(3, 4).flatten(0, 1),
        together[..., :width],
        together[..., width:],
        None if mask is None else mask.of(rows.shape[3], rows.dtype),
    )
    return said.unflatten(2, rows.shape[3:5]).unflatten(0, rows.shape[:2])
