"""One chunk over the KV cache: what its queries see, what the policy observes, what the cache becomes.

Dimension names: B batch, G KV heads, R query heads per KV head, Q new tokens, T columns that the backbone
reads, S visible keys, D head width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hiermem.memory.attention import QKV, Attention, HeadOutputs
from hiermem.memory.cache.head_groups import HeadGroup
from hiermem.memory.cache.layer import LayerCache, LayerGeometry, Prefix
from hiermem.memory.chunk import Chunk, in_order
from hiermem.memory.masks import ChunkMasks
from hiermem.memory.policies import AttentionStats, EvictionPolicy, ObservedQueries, Observer


class ChunkReading:
    """The part of a cache's work that belongs to the chunk being read.

    Args:
        chunk: its tokens.
        geometries: of the backbone's layers.
        head_groups: which heads of which layer share a cache.
        layers: the cache of each group before the chunk.
        policy: what observes attention.

    Attributes:
        layers: of each group that has read the chunk, its cache with the chunk's tokens.
    """

    def __init__(
        self,
        chunk: Chunk,
        geometries: Sequence[LayerGeometry],
        head_groups: Sequence[HeadGroup],
        layers: Sequence[LayerCache],
        policy: EvictionPolicy,
    ) -> None:
        # Nothing here refers to the cache itself: in a cycle of references what was read would stay for long.
        self.chunk, self._groups, self._before, self._policy = chunk, head_groups, layers, policy
        self.layers: dict[int, LayerCache] = {}
        old = layers[0].prefix if layers else None
        self._prefix = chunk.prefix or (0 if old is None else old.keys.shape[2])
        reach = max(chunk.num_tokens) + chunk.width
        windows = [layer.window for layer in geometries]  # in force once a token has left them
        self._windows = [None if width is None or reach <= width else width for width in windows]
        self._masks = ChunkMasks(chunk, self._prefix, max((cache.tokens for cache in layers), default=0))
        self._observed = _observed(chunk, policy)
        frames = chunk.position_ids[:, chunk.tokens].to(torch.int32).unsqueeze(1)
        positions = chunk.positions.unsqueeze(1)
        self._slots = LayerCache(positions=positions, position_ids=frames, ragged=chunk.padded)

    def attend(self, groups: Sequence[int], layer: int, qkv: QKV, attention: Attention) -> HeadOutputs:
        """Outputs of a layer's heads; the caches of its ``groups`` take the chunk in."""
        outputs, visible, grouped = [], [], qkv.grouped
        for index in groups:
            heads, cache = self._groups[index].heads, self._before[index]
            keys, values = self._extend(index, qkv.key[:, heads], qkv.value[:, heads])
            mask = self._masks.of(cache, self._windows[layer], qkv.repeats, qkv.query.dtype)
            outputs.append((heads, attention(grouped[:, heads], keys, values, mask)))
            visible.append(keys)
        if visible and (self._observed is not None or self._policy.num_queries):
            queries = grouped.unflatten(2, (qkv.repeats, -1))[:, :, :, self.chunk.tokens]
            self._observe(groups, queries, visible, attention)
        return outputs

    def _extend(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a chunk's keys and values ``[B, G, T, D]`` to a group's cache; all that may be seen,
        ``[B, G, S, D]``."""
        chunk, cache = self.chunk, self._before[index]
        prefix = cache.prefix
        if chunk.prefix:
            prefix = self._new_prefix(cache, keys[:, :, : chunk.prefix], values[:, :, : chunk.prefix])
        keys, values = cache.extended(keys[:, :, chunk.prefix :], values[:, :, chunk.prefix :])
        tokens = slice(keys.shape[2] - chunk.suffix)  # what follows a segment only sees, and leaves nothing
        self.layers[index] = cache.with_chunk(self._slots, keys[:, :, tokens], values[:, :, tokens], prefix)
        if prefix is None:
            return keys, values
        return torch.cat((prefix.keys, keys), dim=2), torch.cat((prefix.values, values), dim=2)

    def _new_prefix(self, cache: LayerCache, keys: Tensor, values: Tensor) -> Prefix:
        """Prefix of each row's present segment: new where one begins, else what was there."""
        if cache.prefix is None or all(self.chunk.starting):
            return Prefix(keys, values)
        # Rows stand at different places of their segments: the others keep what stood before theirs.
        begins = torch.tensor(self.chunk.starting, device=keys.device).view(-1, 1, 1, 1)
        old = cache.prefix
        return Prefix(torch.where(begins, keys, old.keys), torch.where(begins, values, old.values))

    @torch.no_grad()
    def _observe(
        self, groups: Sequence[int], queries: Tensor, visible: list[Tensor], attention: Attention
    ) -> None:
        """Let the policy see the attention of the queries that it observes, and keep those it asks for.

        Args:
            queries: of a layer's tokens, ``[B, G, R, Q, D]``.
            visible: the keys that each of its groups sees, ``[B, G, S, D]``.
        """
        states: list[dict[str, Tensor]] = [{} for _ in groups]
        if self._observed is not None:
            (observed, observer), R, received = self._observed, queries.shape[2], []
            # All heads' weights first: an observer may stack the tokens of a layer's groups into one product.
            some = queries.index_select(3, observed.columns).flatten(2, 3)
            for index, keys in zip(groups, visible, strict=True):
                weights = self._weights(index, some, keys, R, attention)
                received.append(self._received(index, weights.unflatten(2, (R, -1)), observed))
            states = observer(received)
        for index, state in zip(groups, states, strict=True):
            last = self._last_queries(self._before[index], queries[:, self._groups[index].heads])
            self.layers[index] = replace(self.layers[index], state=state, queries=last)

    def _weights(self, index: int, queries: Tensor, keys: Tensor, R: int, attention: Attention) -> Tensor:
        """Attention of the observed queries of a layer, ``[B, G, R * Q, D]``, over a group's ``keys``."""
        assert self._observed is not None
        columns, group = self._observed[0].columns, self._groups[index]
        queries = queries[:, group.heads]
        if not len(columns):
            return queries.new_zeros(*queries.shape[:3], keys.shape[2])
        mask = self._masks.of(self._before[index], self._windows[group.layer], R, queries.dtype, columns)
        return attention.weights(queries, keys, mask)

    def _received(self, index: int, attention: Tensor, observed: ObservedQueries) -> AttentionStats:
        before, after = self._before[index], self.layers[index]
        assert after.positions is not None
        # Only tokens are scored: what the prefix and the suffix receive is nobody's.
        attention = attention[..., self._prefix : attention.shape[-1] - self.chunk.suffix]
        span = after.tokens if after.ragged else observed.width
        return AttentionStats(before.state, attention, after.positions, span)

    def _last_queries(self, cache: LayerCache, queries: Tensor) -> Tensor | None:
        """The last n real queries up to the end of the chunk, from ``queries [B, G, R, Q, D]``."""
        n, before = self._policy.num_queries, cache.queries
        if not n:
            return None
        if before is None:
            before = queries.new_zeros(*queries.shape[:3], n, queries.shape[4])
        # Column n + i of old and new queries is token i, so the last n real ones end before column n + valid.
        ends = torch.tensor(self.chunk.valid, device=queries.device).unsqueeze(1)
        order = ends + torch.arange(n, device=queries.device)
        return in_order(torch.cat((before, queries), dim=3), order)


def _observed(chunk: Chunk, policy: EvictionPolicy) -> tuple[ObservedQueries, Observer] | None:
    """The chunk's queries that a policy observes, and its observer; None: it observes none.

    They depend on true positions alone, so cutting a text into other chunks shows the same queries. Where
    rows differ, all columns are shown.
    """
    period = policy.period
    if not period:
        return None
    columns = torch.arange(chunk.width, device="cpu")
    if not chunk.padded and len({count % period for count in chunk.num_tokens}) == 1:
        seen = policy.observed_mask(columns + chunk.num_tokens[0]).cpu().numpy()
        columns = torch.from_numpy(seen.nonzero()[0])  # a device would have to be waited for
    on_device = columns.to(chunk.positions.device)
    positions = chunk.positions[:, on_device]
    counted = (positions >= 0) & policy.observed_mask(positions)
    of_chunk = (chunk.num_tokens, chunk.valid, chunk.width)
    queries = ObservedQueries(on_device, positions, counted, *of_chunk, columns)
    return queries, policy.observer(queries)
