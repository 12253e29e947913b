"""Attention masks: what each query of a chunk sees of the prefix, the cache, the tokens and the suffix.

Dimension names: B batch, G KV heads, R query heads per KV head, Q new queries, P keys of a prefix, T cached
tokens, S visible keys.
"""

import torch
from torch import Tensor

from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.chunk import Chunk


def _never(dtype: torch.dtype) -> float:
    """Addend to the logits of an unseen key: so low that its weight is 0, so high that logits added
    to it stay finite, and a row that sees nothing with them."""
    return torch.finfo(dtype).min / 2


def additive(visible: Tensor, repeats: int, dtype: torch.dtype) -> Tensor:
    """Mask to be added to logits, ``[…, R * Q, S]``, from what each query sees, ``[…, Q, S]`` bool."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask = mask.masked_fill_(~visible, _never(dtype))
    return mask.repeat(*[1] * (mask.ndim - 2), repeats, 1)


class SharedMask:
    """A mask in the shapes that layers want; each is made once.

    Args:
        visible: ``[B, n, L, S]`` bool.
    """

    def __init__(self, visible: Tensor) -> None:
        self._visible = visible.flatten(0, 1).unsqueeze(1)
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}

    def of(self, repeats: int, dtype: torch.dtype) -> Tensor:
        """Additive mask ``[B * n, 1, repeats * L, S]``."""
        key = (repeats, dtype)
        if key not in self._masks:
            self._masks[key] = additive(self._visible, repeats, dtype)
        return self._masks[key]


class ChunkMasks:
    """The masks of one chunk over the caches of all layers; equal ones are made once.

    Args:
        chunk: the tokens that are read, and what is read around them.
        prefix: P, keys that stand before the cached ones.
        tallest: most tokens that any KV head holds before the chunk.
    """

    def __init__(self, chunk: Chunk, prefix: int, tallest: int) -> None:
        self._chunk, self._prefix, self._tallest = chunk, prefix, tallest
        self._masks: dict[tuple[int, int, bool], Tensor] = {}

    def of(
        self,
        cache: LayerCache,
        window: int | None,
        repeats: int,
        dtype: torch.dtype,
        observed: Tensor | None = None,
    ) -> Tensor | None:
        """Additive mask over a cache and the chunk, broadcastable to ``[B, G, R * Q, S]``.

        None where a single query sees everything. Query heads of a KV group are laid out as R * Q rows.

        Args:
            window: the layer's sliding window, where a token has left it.
            observed: only the rows of these columns of the tokens, ``[Q']`` int64, and perhaps only the last
                keys: all see what stands before.
        """
        chunk, width, device = self._chunk, self._chunk.width, self._chunk.positions.device
        exact = cache.ragged or chunk.padded or window
        if not exact and width == 1 and not chunk.around and chunk.prefix_mask is None:
            return None
        if observed is None:
            columns = torch.arange(-chunk.prefix, width + chunk.suffix, device=device).clamp(-1, width)
        else:
            columns = observed
        if exact:
            visible = seen_exactly(cache, chunk, columns, window)
            return additive(self._around(visible, columns), repeats, dtype)
        # The newest keys stand last, so one mask serves all layers.
        height = cache.tokens if self._prefix else 0 if observed is not None else self._tallest
        key = (height, repeats, observed is not None)
        if key not in self._masks:
            visible = seen_causally(height, chunk, columns)[None, None]
            self._masks[key] = additive(self._around(visible, columns), repeats, dtype)
        return self._masks[key][..., max(height - cache.tokens, 0) :]

    def _around(self, visible: Tensor, columns: Tensor) -> Tensor:
        return around_tokens(visible, self._chunk, columns, self._prefix) if self._prefix else visible


def seen_causally(cached: int, chunk: Chunk, columns: Tensor) -> Tensor:
    """Visible keys ``[Q', S]`` bool where all cached tokens are seen and new ones causally.

    Args:
        columns: the chunk's queries that are wanted, ``[Q']`` int64; -1 is one before the tokens, Q after.
    """
    # Cached keys have negative columns: all of them stand before every query.
    keys = torch.arange(-cached, chunk.width, device=columns.device)
    return keys <= columns.unsqueeze(1)


def seen_exactly(cache: LayerCache, chunk: Chunk, columns: Tensor, window: int | None) -> Tensor:
    """Visible keys ``[B, 1 or G, Q', S]`` bool from true positions: padding, empty slots, sliding windows.

    Args:
        columns: as in `seen_causally`.
    """
    new = chunk.positions.unsqueeze(1)  # [B, 1, Q]
    key = new
    if cache.positions is not None:
        key = torch.cat((cache.positions, new.expand(-1, cache.positions.shape[1], -1)), dim=2)
    key, query = key.unsqueeze(2), _query_positions(chunk, columns)[:, None, :, None]
    visible = (key >= 0) & (key <= query)  # empty slots and padding have position -1
    if window is not None:
        visible &= query - key < window
    return visible


def _query_positions(chunk: Chunk, columns: Tensor) -> Tensor:
    """True positions ``[B, Q']`` of the wanted queries; those around the tokens stand next to them."""
    if not chunk.around:
        return chunk.positions[:, columns]
    last = chunk.positions.amax(dim=1, keepdim=True)
    first = last + 1 - torch.tensor(chunk.valid, device=last.device).unsqueeze(1)
    # Column -1 and column Q of the chunk are then one lookup, as all columns are.
    around = torch.cat((first - 1, chunk.positions, last + 1), dim=1)
    return around[:, columns + 1]


def around_tokens(visible: Tensor, chunk: Chunk, columns: Tensor, prefix: int) -> Tensor:
    """``visible [B, G, Q', S]`` with the prefix in front of the keys and the suffix behind them.

    Those before the tokens see nothing but each other, causally, and are seen by all: the first of them is
    where attention goes that wants nothing, as it was the first token in the segment before. Those after the
    tokens only see.

    Args:
        columns: as in `seen_causally`.
        prefix: P.
    """
    _, G, Q, S = visible.shape
    B = len(visible) if chunk.prefix_mask is None else len(chunk.prefix_mask)
    place = torch.arange(Q, device=columns.device).unsqueeze(1)
    before, after = (columns < 0).unsqueeze(1), (columns == chunk.width).unsqueeze(1)
    front = ~before | (torch.arange(prefix, device=columns.device) <= place)
    front = front.expand(B, 1, -1, -1)
    if chunk.prefix_mask is not None:
        front = front & chunk.prefix_mask[:, None, None]  # early in a document there are few sensory tokens
    back = after & (torch.arange(chunk.suffix, device=columns.device) + Q - chunk.suffix <= place)
    visible = (visible & ~before).expand(B, G, Q, S)
    return torch.cat((front.expand(-1, G, -1, -1), visible, back.expand(B, G, -1, -1)), -1)
