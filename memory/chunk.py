"""The tokens that are being read, and the attention masks for them.

Dimension names: B batch, G KV heads, R query heads per KV head, Q new queries, T cached tokens, S = T + Q.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hiermem.memory.cache.layer import LayerCache


@dataclass(frozen=True)
class Chunk:
    """The tokens that are being read, and what is read around them.

    Attributes:
        positions: true positions of the tokens, ``[B, Q]`` int64, -1 for padding.
        frames: positions the backbone is shown, ``[B, lead + Q + tail]`` int64.
        valid: number of real tokens in each row.
        seen: tokens that each row had read before.
        padded: whether any row has padding.
        lead: embeddings before the tokens: a segment begins in some row.
        tail: embeddings after the tokens: a segment ends in some row.
        starting, ending: in which rows.
    """

    positions: Tensor
    frames: Tensor
    valid: tuple[int, ...]
    seen: tuple[int, ...]
    padded: bool
    lead: int = 0
    tail: int = 0
    starting: tuple[bool, ...] = ()
    ending: tuple[bool, ...] = ()

    @property
    def tokens(self) -> slice:
        """Which of the columns that the backbone reads are tokens."""
        return slice(self.lead, self.lead + self.positions.shape[1])


@dataclass(frozen=True)
class Prefix:
    """What is read before a segment: seen by all its tokens, never evicted, replaced by the next.

    Attributes:
        keys, values: ``[B, G, P, D]``.
    """

    keys: Tensor
    values: Tensor

    def rows(self, index: Tensor) -> "Prefix":
        """The prefix of other batch rows, ``index [B'] int64``."""
        index = index.to(self.keys.device)
        return Prefix(self.keys.index_select(0, index), self.values.index_select(0, index))


def in_order(tensor: Tensor, order: Tensor) -> Tensor:
    """Columns of ``tensor [B, …, T, ·]`` by their numbers in each row, ``order [B, T'] int64``."""
    index = order.view(len(order), *[1] * (tensor.ndim - 3), -1, 1)
    return tensor.gather(-2, index.expand(*tensor.shape[:-2], -1, tensor.shape[-1]))


def real_first(real: Tensor) -> Tensor:
    """Numbers of columns, those that count before the others, else as they stand, from ``[B, T]`` bool."""
    return real.to(torch.int8).argsort(dim=1, descending=True, stable=True)


def _never(dtype: torch.dtype) -> float:
    """What is added to the logits of an unseen key: so low that its weight is 0, so high that logits added
    to it stay finite, and a row that sees nothing with them."""
    return torch.finfo(dtype).min / 2


def additive(visible: Tensor, repeats: int, dtype: torch.dtype) -> Tensor:
    """Mask to be added to logits, ``[…, R * Q, S]``, from what each query sees, ``[…, Q, S]`` bool."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask = mask.masked_fill_(~visible, _never(dtype))
    return mask.repeat(*[1] * (mask.ndim - 2), repeats, 1)


def seen_causally(cached: int, chunk: Chunk, columns: Tensor) -> Tensor:
    """What is visible ``[Q', S]`` bool where all cached tokens are seen and new ones causally.

    Args:
        columns: the chunk's queries that are wanted, ``[Q']`` int64; -1 is one before the tokens, Q after.
    """
    keys = torch.arange(-cached, chunk.positions.shape[1], device=columns.device)
    return keys <= columns.unsqueeze(1)


def seen_exactly(memory: LayerCache, chunk: Chunk, columns: Tensor, window: int | None) -> Tensor:
    """What is visible ``[B, 1 or G, Q', S]`` bool from true positions: padding, holes, sliding windows.

    Args:
        columns: as in `seen_causally`.
    """
    new = chunk.positions.unsqueeze(1)  # [B, 1, Q]
    key = new
    if memory.positions is not None:
        key = torch.cat((memory.positions, new.expand(-1, memory.positions.shape[1], -1)), dim=2)
    key, query = key.unsqueeze(2), _query_positions(chunk, columns)[:, None, :, None]
    visible = (key >= 0) & (key <= query)
    if window is not None:
        visible &= query - key < window
    return visible


def _query_positions(chunk: Chunk, columns: Tensor) -> Tensor:
    """True positions ``[B, Q']`` of the wanted queries; those around the tokens stand next to them."""
    if not (chunk.lead or chunk.tail):
        return chunk.positions[:, columns]
    last = chunk.positions.amax(dim=1, keepdim=True)
    first = last + 1 - torch.tensor(chunk.valid, device=last.device).unsqueeze(1)
    around = torch.cat((first - 1, chunk.positions, last + 1), dim=1)
    return around[:, columns + 1]


def around_tokens(
    visible: Tensor, chunk: Chunk, columns: Tensor, prefix: int, there: Tensor | None
) -> Tensor:
    """``visible [B, G, Q', S]`` with the prefix in front of the keys and the tail behind them.

    Those before the tokens see nothing but each other, causally, and are seen by all: the first of them is
    where attention goes that wants nothing, as it was the first token in the segment before. Those after the
    tokens only see.

    Args:
        columns: as in `seen_causally`.
        prefix: keys of the prefix.
        there: which of them may be seen, ``[B, prefix]`` bool; None: all.
    """
    _, G, Q, S = visible.shape
    B = len(visible) if there is None else len(there)
    place = torch.arange(Q, device=columns.device).unsqueeze(1)
    before, after = (columns < 0).unsqueeze(1), (columns == chunk.positions.shape[1]).unsqueeze(1)
    front = ~before | (torch.arange(prefix, device=columns.device) <= place)
    front = front.expand(B, 1, -1, -1)
    if there is not None:
        front = front & there[:, None, None]
    back = after & (torch.arange(chunk.tail, device=columns.device) + Q - chunk.tail <= place)
    visible = (visible & ~before).expand(B, G, Q, S)
    return torch.cat((front.expand(-1, G, -1, -1), visible, back.expand(B, G, -1, -1)), -1)
