"""Sinks and sliding window of Mamba heads: the document's first tokens, the last, and the segment's prompt.

Such heads still need two things exactly, whatever their state remembers: the tokens right before the
query, and the first, where attention goes that wants nothing (StreamingLLM, arXiv 2309.17453;
DuoAttention, arXiv 2410.10819). There is a fixed number of them, so they belong to the state, not to a cache.

Dimension names: B batch, G' replaced KV groups of a layer, R query heads of a group, H' = G' R, T columns of
a chunk, of which Q are tokens and T' those without the prefix, D head width, E = 2 D (keys beside values), s
first tokens, w last tokens (the query's own among them), P columns of a prompt, L queries of a block, n
blocks, S = P + s + w - 1 + L.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.memory.attention import QKV, Attention
from hiermem.memory.chunk import Chunk, in_order, real_first
from hiermem.memory.masks import SharedMask


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
        """The state before anything was read; ``like [B, G', ·, E]``."""
        B, G, _, E = like.shape
        return cls(*(like.new_zeros(B, G, columns, E) for columns in (sinks, window - 1, 0)))


@dataclass(frozen=True)
class LocalAttentionPlan:
    """Plan of who sees what in a chunk; the same for all heads of layers with the same sliding window.

    Attributes:
        prefix: columns before the tokens.
        prefix_sees: what those see of each other.
        order: in which order each row's other columns are read, ``[B, T']`` int64; None: as they stand.
        block: L.
        body_sees: what the others see; None: all.
        first: which column each of the document's first tokens is, ``[B, s]`` int64, and which of them are
            new, ``[B, s]`` bool; None: they were all read before.
        starting: rows that take the new prompt, ``[B]`` bool; None: all.
        end: tokens of each row, ``[B]`` int64; None: as many as columns are tokens.
        tokens: Q.
    """

    prefix: int
    prefix_sees: SharedMask
    order: Tensor | None
    block: int
    body_sees: SharedMask | None
    first: tuple[Tensor, Tensor] | None
    starting: Tensor | None
    end: Tensor | None
    tokens: int


def plan_local_attention(
    chunk: Chunk, sinks: int, window: int, prompt: int, sliding: int | None = None
) -> LocalAttentionPlan:
    """Plan how Mamba heads attend to a chunk.

    Args:
        chunk: the tokens that are read, and what is read around them.
        sinks: first tokens of the document that are seen (s).
        window: last tokens that are seen (w).
        prompt: embeddings of the memory prompt (P).
        sliding: the layer's sliding window; None: there is none.
    """
    device, Q, visible = chunk.positions.device, chunk.width, chunk.prefix_mask
    body, begun = Q + chunk.suffix, min(chunk.num_tokens)
    L = min(window, body)
    reach = _Reach.of(chunk, sinks, window, sliding)
    alone = body == 1 and not chunk.around and not chunk.padded and visible is None and sliding is None
    everything = alone and begun >= sinks + window - 1
    causal = torch.ones(chunk.prefix, chunk.prefix, dtype=torch.bool, device=device).tril()
    before = causal & visible.unsqueeze(1) if chunk.prefix and visible is not None else causal[None]
    first, valid = reach.first, reach.valid
    return LocalAttentionPlan(
        chunk.prefix,
        SharedMask(before.unsqueeze(1)),
        _order(Q, chunk.suffix, valid) if chunk.suffix and chunk.padded else None,
        L,
        None if everything else SharedMask(_sees(reach, body, L, _shown(chunk, prompt))),
        (first.clamp(0, body - 1), (first >= 0) & (first < valid.unsqueeze(1))) if begun < sinks else None,
        None if all(chunk.starting) else torch.tensor(chunk.starting, device=device),
        valid if chunk.padded else None,
        Q,
    )


@dataclass(frozen=True)
class _Reach:
    """Reach of a chunk's queries.

    Attributes:
        first: columns of the document's first tokens, counted from the chunk's first, ``[B, s]``.
        begun: tokens before the chunk, ``[B]``.
        valid: tokens in the chunk, ``[B]``.
        window: w.
        sliding: the layer's sliding window; None: there is none.
    """

    first: Tensor
    begun: Tensor
    valid: Tensor
    window: int
    sliding: int | None

    @classmethod
    def of(cls, chunk: Chunk, sinks: int, window: int, sliding: int | None) -> "_Reach":
        device = chunk.positions.device
        begun, valid = (torch.tensor(count, device=device) for count in (chunk.num_tokens, chunk.valid))
        return cls(torch.arange(sinks, device=device) - begun.unsqueeze(1), begun, valid, window, sliding)


def _shown(chunk: Chunk, prompt: int) -> Tensor:
    """Columns of a prompt of P that may be seen, ``[B, P]`` bool."""
    if chunk.prefix_mask is not None:
        return chunk.prefix_mask
    return torch.ones(len(chunk.valid), prompt, dtype=torch.bool, device=chunk.positions.device)


def _sees(reach: _Reach, body: int, L: int, shown: Tensor) -> Tensor:
    """Visible keys of each block's queries, ``[B, n, L, S]`` bool.

    A layer's sliding window is measured as attention measures it: all that follows the tokens of a row stands
    at one place, right after the last.

    Args:
        body: T'.
        shown: which columns of the prompt may be seen, ``[B, P]`` bool.
    """
    query = torch.arange(-(-body // L) * L, device=shown.device).view(-1, L, 1)
    key = query[:, :1] + torch.arange(1 - reach.window, L, device=shown.device)  # [n, 1, w - 1 + L]
    begun, valid = reach.begun.view(-1, 1, 1, 1), reach.valid.view(-1, 1, 1, 1)
    first = reach.first[:, None, None]
    near = (key <= query) & (key > query - reach.window) & (key >= -begun)
    far = (first <= query - reach.window) & (first < valid)
    if reach.sliding is not None:
        reached = torch.minimum(query, valid) - reach.sliding
        near, far = near & ((key > reached) | (key >= valid)), far & (first > reached)
    always = shown[:, None, None].expand(-1, *query.shape[:2], -1)
    return torch.cat((always, far, near), dim=-1)


def _order(Q: int, suffix: int, valid: Tensor) -> Tensor:
    """Order that puts the suffix right after each row's own tokens, ``[B, Q + suffix]``."""
    columns = torch.arange(Q + suffix, device=valid.device)
    return real_first((columns < valid.unsqueeze(1)) | (columns >= Q))


def local_attention(
    qkv: QKV, plan: LocalAttentionPlan, before: SinkWindowKV, attention: Attention
) -> tuple[Tensor, SinkWindowKV]:
    """Softmax attention to first and last tokens, ``[B, H', T, D]``, and those tokens after the chunk.

    Args:
        qkv: of the H' replaced query heads and G' KV groups, rotated at the chunk's frames.
        before: first and last tokens before it.
        attention: the backbone's.
    """
    pairs, queries = torch.cat((qkv.key, qkv.value), dim=-1), qkv.query.unflatten(1, (qkv.key.shape[1], -1))
    prefix, body = pairs[:, :, : plan.prefix], pairs[:, :, plan.prefix :]
    asking = queries[:, :, :, plan.prefix :]  # [B, G', R, T', D]
    if plan.order is not None:
        body, asking = in_order(body, plan.order), in_order(asking, plan.order)
    prompt = before.prompt
    if plan.prefix and plan.starting is not None and prompt.shape[2]:
        prompt = torch.where(plan.starting.view(-1, 1, 1, 1), prefix, prompt)
    elif plan.prefix:
        prompt = prefix.clone()  # a view would keep the whole chunk
    first = before.first
    if plan.first is not None:
        place, new = plan.first
        first = torch.where(new[:, None, :, None], in_order(body, place), first)
    stream = torch.cat((before.last, body), dim=2)  # [B, G', w - 1 + T', E]: each query's window ends at it
    output = _over_blocks(asking, stream, torch.cat((prompt, first), dim=2), plan, attention)
    if plan.order is not None:
        output = in_order(output, plan.order.argsort(dim=1))
    if plan.prefix:
        leading = queries[:, :, :, : plan.prefix].unsqueeze(1)
        alone = _over(leading, prefix.unsqueeze(1), plan.prefix_sees, attention).squeeze(1)
        output = torch.cat((alone, output), dim=3)
    count = before.last.shape[2]
    if plan.end is None:
        last = stream[:, :, plan.tokens : plan.tokens + count]
    else:
        last = in_order(stream, plan.end.unsqueeze(1) + torch.arange(count, device=stream.device))
    return output.flatten(1, 2), SinkWindowKV(first, last.clone(), prompt)


def _over_blocks(
    queries: Tensor, stream: Tensor, always: Tensor, plan: LocalAttentionPlan, attention: Attention
) -> Tensor:
    """Attention of ``queries [B, G', R, T', D]`` to the last tokens in ``stream [B, G', w - 1 + T', E]`` and
    what stands before them, ``[B, G', P + s, E]``; in blocks, as no query reaches further than the last."""
    T, L = queries.shape[3], plan.block
    missing, blocks = -T % L, -(-T // L)
    if missing:
        queries, stream = (F.pad(tensor, (0, 0, 0, missing)) for tensor in (queries, stream))
    # Query i of a block sees at most w - 1 tokens before the block: one slice serves all L queries.
    reach = stream.shape[2] - blocks * L + L
    windows = stream.unfold(2, reach, L).permute(0, 2, 1, 4, 3)  # [B, n, G', w - 1 + L, E]
    pairs = torch.cat((always.unsqueeze(1).expand(-1, blocks, -1, -1, -1), windows), dim=3)
    rows = queries.unflatten(3, (blocks, L)).permute(0, 3, 1, 2, 4, 5)  # [B, n, G', R, L, D]
    return _over(rows, pairs, plan.body_sees, attention).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)[:, :, :, :T]


def _over(rows: Tensor, pairs: Tensor, mask: SharedMask | None, attention: Attention) -> Tensor:
    """Attention of ``rows [B, n, G', R, L, D]`` to keys beside values ``[B, n, G', S, E]``, shaped so."""
    together, width = pairs.flatten(0, 1), rows.shape[-1]
    output = attention(
        rows.flatten(3, 4).flatten(0, 1),
        together[..., :width],
        together[..., width:],
        None if mask is None else mask.of(rows.shape[3], rows.dtype),
    )
    return output.unflatten(2, rows.shape[3:5]).unflatten(0, rows.shape[:2])
