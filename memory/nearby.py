"""What a Mamba head still looks at: the prompt of the segment, the document's first tokens, and the last.

Heads that look near still need two things exactly, whatever their state remembers: the tokens right before
the query, and the first, where attention goes that wants nothing (StreamingLLM, arXiv 2309.17453;
DuoAttention, arXiv 2410.10819). There is a fixed number of them, so they belong to the state, not to a cache.

Dimension names: B batch, G' replaced KV groups of a layer, R query heads of a group, H' = G' R, T columns of
a chunk, D head width, E = 2 D (keys beside values), s first tokens, w last tokens, P columns of a prompt, L
queries of a block, n blocks, S = P + s + w + L.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.memory.chunk import Chunk, additive


@dataclass(frozen=True)
class Near:
    """Keys, rotated as they were read, beside values, in the backbone's dtype.

    Attributes:
        first: of the document's first tokens, ``[B, G', s, E]``.
        last: of the newest tokens, ``[B, G', w, E]``.
        prompt: of what was read before the present segment, ``[B, G', P, E]``.
    """

    first: Tensor
    last: Tensor
    prompt: Tensor

    @classmethod
    def nothing(cls, like: Tensor, first: int, last: int) -> "Near":
        """Where nothing was read yet; ``like [B, G', ·, E]``."""
        B, G, _, E = like.shape
        return cls(*(like.new_zeros(B, G, columns, E) for columns in (first, last, 0)))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {"first": self.first, "last": self.last, "prompt": self.prompt}


@dataclass(frozen=True)
class View:
    """Who sees what in a chunk; the same for all heads of layers with the same sliding window.

    Attributes:
        lead: columns before the tokens.
        before: additive mask among those, ``[B or 1, 1, lead, lead]`` float32.
        order: in which order each row's other columns are read, ``[B, T - lead]`` int64; None: as they stand.
        block: L.
        seen: additive mask of the others, ``[B or 1, 1, n, L, S]`` float32.
        first: which column each of the document's first tokens is, ``[B, s]`` int64, and which of them are
            new, ``[B, s]`` bool; None: they were all read before.
        starting: rows that take the new prompt, ``[B]`` bool; None: all.
        end: tokens of each row, ``[B]`` int64; None: as many as columns are tokens.
        tokens: columns that are tokens.
    """

    lead: int
    before: Tensor
    order: Tensor | None
    block: int
    seen: Tensor
    first: tuple[Tensor, Tensor] | None
    starting: Tensor | None
    end: Tensor | None
    tokens: int


def view_of(
    chunk: Chunk,
    first: int,
    last: int,
    prompt: int,
    there: Tensor | None,
    sliding: int | None = None,
) -> View:
    """How Mamba heads look at a chunk.

    Args:
        first, last: s and w.
        prompt: P.
        there: which columns of the prompt may be seen, ``[B, P]`` bool; None: all.
        sliding: the layer's sliding window; None: there is none.
    """
    device, Q = chunk.positions.device, chunk.positions.shape[1]
    begun, valid = (torch.tensor(count, device=device) for count in (chunk.seen, chunk.valid))
    numbers = torch.arange(first, device=device) - begun.unsqueeze(
        1
    )  # [B, s], from the chunk's first token on
    new = (numbers >= 0) & (numbers < valid.unsqueeze(1))
    T = Q + chunk.tail
    L = min(last, T)
    reach = last if sliding is None else min(last, sliding)
    query = torch.arange(-(-T // L) * L, device=device).view(-1, L, 1)
    key = query[:, :1] - last + torch.arange(last + L, device=device)  # [n, 1, w + L]
    near = (key <= query) & (key > query - reach) & (key + begun.view(-1, 1, 1, 1) >= 0)
    column = numbers[:, None, None]
    far = column <= query - reach
    far = far if sliding is None else far & (column > query - sliding)
    shown = torch.ones(len(valid), prompt, dtype=torch.bool, device=device) if there is None else there
    always = shown[:, None, None].expand(-1, *query.shape[:2], -1)
    visible = torch.cat((always, far, near), dim=-1)
    causal = torch.ones(chunk.lead, chunk.lead, dtype=torch.bool, device=device).tril()
    before = causal[None] if there is None or not chunk.lead else causal & there.unsqueeze(1)
    return View(
        chunk.lead,
        additive(before, 1, torch.float32).unsqueeze(1),
        _order(chunk, valid) if chunk.tail and chunk.padded else None,
        L,
        additive(visible, 1, torch.float32).unsqueeze(1),
        (numbers.clamp(0, T - 1), new) if min(chunk.seen) < first else None,
        None if all(chunk.starting) else torch.tensor(chunk.starting, device=device),
        valid if chunk.padded else None,
        Q,
    )


def _order(chunk: Chunk, valid: Tensor) -> Tensor:
    """What follows the tokens right after each row's own, ``[B, Q + tail]``."""
    Q = chunk.positions.shape[1]
    columns = torch.arange(Q + chunk.tail, device=valid.device)
    real = (columns < valid.unsqueeze(1)) | (columns >= Q)
    return real.to(torch.int8).argsort(dim=1, descending=True, stable=True)


def look(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    view: View,
    before: Near,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Near]:
    """Softmax attention to what is near, ``[B, H', T, D]`` float32, and what is near after the chunk.

    Args:
        query: ``[B, H', T, D]``; key, value: ``[B, G', T, D]``, all rotated at the chunk's frames.
        before: what was near before it.
    """
    pairs, G = torch.cat((key, value), dim=-1), key.shape[1]
    queries = query.unflatten(1, (G, -1)).float() * scaling  # [B, G', R, T, D]
    lead, body = pairs[:, :, : view.lead], pairs[:, :, view.lead :]
    asking, asked = queries[:, :, :, : view.lead], queries[:, :, :, view.lead :]
    if view.order is not None:
        body, asked = _columns(body, view.order), _columns(asked, view.order)
    prompt = lead if view.lead else before.prompt
    if view.lead and view.starting is not None and before.prompt.shape[2]:
        prompt = torch.where(view.starting.view(-1, 1, 1, 1), lead, before.prompt)
    first = before.first
    if view.first is not None:
        place, new = view.first
        first = torch.where(new[:, None, :, None], _columns(body, place), first)
    stream = torch.cat((before.last, body), dim=2)
    said = _over_blocks(asked, stream, torch.cat((prompt, first), dim=2), view, softcap)
    if view.order is not None:
        said = _columns(said, view.order.argsort(dim=1))
    if view.lead:
        said = torch.cat((_over(asking.flatten(2, 3), lead, view.before, softcap, view.lead), said), dim=3)
    w = before.last.shape[2]
    newest = slice(view.tokens, view.tokens + w)
    if view.end is None:
        last = stream[:, :, newest]
    else:
        last = _columns(stream, view.end.unsqueeze(1) + torch.arange(w, device=stream.device))
    return said.flatten(1, 2), Near(first, last, prompt)


def _columns(tensor: Tensor, order: Tensor) -> Tensor:
    """Columns of ``tensor [B, …, T, ·]`` by their numbers in each row, ``[B, T']``."""
    index = order.view(len(order), *[1] * (tensor.ndim - 3), -1, 1)
    return tensor.gather(-2, index.expand(*tensor.shape[:-2], -1, tensor.shape[-1]))


def _over_blocks(asked: Tensor, stream: Tensor, always: Tensor, view: View, softcap: float | None) -> Tensor:
    """Attention of ``asked [B, G', R, T', D]`` to the last tokens in ``stream [B, G', w + T', E]`` and to
    what stands before them, ``[B, G', P + s, E]``; in blocks, as no query reaches further than the last."""
    T, L = asked.shape[3], view.block
    missing, blocks = -T % L, -(-T // L)
    w = stream.shape[2] - T
    windows = F.pad(stream, (0, 0, 0, missing)).unfold(2, w + L, L).transpose(-1, -2)  # [B, G', n, w + L, E]
    pairs = torch.cat((always.unsqueeze(2).expand(-1, -1, blocks, -1, -1), windows), dim=3)
    rows = F.pad(asked, (0, 0, 0, missing)).unflatten(3, (blocks, L)).transpose(2, 3)  # [B, G', n, R, L, D]
    return _over(rows.flatten(3, 4), pairs, view.seen, softcap, L).transpose(2, 3).flatten(3, 4)[:, :, :, :T]


def _over(rows: Tensor, pairs: Tensor, mask: Tensor, softcap: float | None, queries: int) -> Tensor:
    """Attention of ``rows [B, G', …, R * L, D]`` to keys beside values ``[B, G', …, S, E]``,
    ``[B, G', …, R, L, D]``."""
    width = rows.shape[-1]
    pairs = pairs.float()
    logits = rows @ pairs[..., :width].transpose(-1, -2)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    weights = (logits.unflatten(-2, (-1, queries)) + mask.unsqueeze(-3)).softmax(-1)
    return (weights.flatten(-3, -2) @ pairs[..., width:]).unflatten(-2, (-1, queries))
