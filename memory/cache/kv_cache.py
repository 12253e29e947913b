"""The KV cache of all layers, pruned per KV head: what is kept, what a chunk sees of it, what is evicted.

A layer's cache is one rectangle, or, where its heads keep different numbers of tokens, several.

Dimension names: B batch, G KV heads, R query heads per KV head, Q new tokens, T cached tokens, S visible
keys, D head width.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hiermem.memory.attention import QKV, Attention, HeadOutputs
from hiermem.memory.cache.frames import Decision, FrameMove
from hiermem.memory.cache.head_groups import HeadGroup
from hiermem.memory.cache.layer import LayerCache, LayerGeometry, Prefix
from hiermem.memory.chunk import Chunk, in_order
from hiermem.memory.chunk_state import ChunkState
from hiermem.memory.masks import ChunkMasks
from hiermem.memory.policies import AttentionStats, CacheStats, EvictionPolicy, ObservedQueries, Observer
from hiermem.memory.stored import Stored
from hiermem.memory.tensor_state import TensorSpec


@dataclass
class _Reading:
    """What belongs to the chunk that is being read.

    Attributes:
        chunk: its tokens.
        prefix: keys that stand before the cached ones.
        windows: of each layer, its sliding window where a token has left it.
        masks: of the chunk.
        observed: the queries that the policy looks at, and who takes note of them; None: it looks at none.
        layers: of each group that has read the chunk, its cache with the chunk's tokens.
    """

    chunk: Chunk
    prefix: int
    windows: list[int | None]
    masks: ChunkMasks
    observed: tuple[ObservedQueries, Observer] | None
    layers: dict[int, LayerCache]


class KVCache(ChunkState):
    """The cache of every group of KV heads.

    Args:
        geometries: of the backbone's layers.
        head_groups: which heads of which layer share a cache.
        policy: what scores cached tokens.
        recent: newest tokens that a head with a certain budget never loses.

    Attributes:
        layers: the cache of each group.
        fixed_shapes: whether an eviction leaves as many slots as the budget allows, empty ones among them,
            where the policy drops more: a compiled step then serves all of a document.
    """

    batched: ClassVar = {"layers": ""}

    def __init__(
        self,
        geometries: Sequence[LayerGeometry],
        head_groups: Sequence[HeadGroup],
        policy: EvictionPolicy,
        recent: Callable[[int], int],
    ) -> None:
        self.geometries, self.head_groups = tuple(geometries), tuple(head_groups)
        self.policy, self._recent = policy, recent
        self.layers = [self._empty(group) for group in self.head_groups]
        self.fixed_shapes = False
        self._of_layer: list[list[int]] = [[] for _ in self.geometries]
        for index, group in enumerate(self.head_groups):
            self._of_layer[group.layer].append(index)
        self._reading: _Reading | None = None

    def _empty(self, group: HeadGroup) -> LayerCache:
        return self.geometries[group.layer].cache

    # ---- reading one chunk

    @property
    def tokens(self) -> int:
        """Most tokens that any KV head holds."""
        return max((cache.tokens for cache in self.layers), default=0)

    @property
    def complete(self) -> bool:
        """Whether every layer has read the present chunk."""
        return self._reading is not None and len(self._reading.layers) == len(self.head_groups)

    def end_chunk(self) -> None:
        self._reading = None

    def begin(self, chunk: Chunk) -> None:
        old = self.layers[0].prefix if self.layers else None
        prefix = chunk.prefix or (0 if old is None else old.keys.shape[2])
        reach = max(chunk.num_tokens) + chunk.width
        windows = [
            None if own.window is None or reach <= own.window else own.window for own in self.geometries
        ]
        masks = ChunkMasks(chunk, prefix, self.tokens)
        self._reading = _Reading(chunk, prefix, windows, masks, self._observed(chunk), {})

    def _observed(self, chunk: Chunk) -> tuple[ObservedQueries, Observer] | None:
        """The chunk's queries that the policy looks at, and what takes note of them.

        They depend on true positions alone, so cutting a text into other chunks shows the same queries. Where
        rows differ, all columns are shown.
        """
        period = self.policy.period
        if not period:
            return None
        columns = torch.arange(chunk.width, device=chunk.positions.device)
        if not chunk.padded and len({count % period for count in chunk.num_tokens}) == 1:
            columns = columns[self.policy.observed_mask(columns + chunk.num_tokens[0])]
        positions = chunk.positions[:, columns]
        counted = (positions >= 0) & self.policy.observed_mask(positions)
        queries = ObservedQueries(columns, positions, counted, chunk.num_tokens, chunk.valid, chunk.width)
        return queries, self.policy.observer(queries)

    def attend(self, layer: int, qkv: QKV, attention: Attention) -> HeadOutputs:
        reading = self._reading
        assert reading is not None
        outputs, visible = [], []
        for index in self._of_layer[layer]:
            heads = self.head_groups[index].heads
            keys, values = self._extend(index, qkv.key[:, heads], qkv.value[:, heads])
            mask = reading.masks.of(self.layers[index], reading.windows[layer], qkv.repeats, qkv.query.dtype)
            outputs.append((heads, attention(qkv.grouped[:, heads], keys, values, mask)))
            visible.append(keys)
        if visible:
            self._observe(layer, qkv, visible, attention)
        return outputs

    def _extend(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a chunk's keys and values ``[B, G, prefix + Q + suffix, D]`` to a group's cache; all that may
        be seen, ``[B, G, S, D]``."""
        reading, cache = self._reading, self.layers[index]
        assert reading is not None
        chunk, prefix = reading.chunk, cache.prefix
        if chunk.prefix:
            prefix = self._new_prefix(cache, keys[:, :, : chunk.prefix], values[:, :, : chunk.prefix])
        keys, values = cache.extended(keys[:, :, chunk.prefix :], values[:, :, chunk.prefix :])
        tokens = slice(keys.shape[2] - chunk.suffix)  # what follows a segment only sees, and leaves nothing
        longer = cache.with_chunk(chunk, keys[:, :, tokens], values[:, :, tokens], {})
        reading.layers[index] = replace(longer, prefix=prefix)
        if prefix is None:
            return keys, values
        return torch.cat((prefix.keys, keys), dim=2), torch.cat((prefix.values, values), dim=2)

    def _new_prefix(self, cache: LayerCache, keys: Tensor, values: Tensor) -> Prefix:
        """What stands before each row's present segment: new where one begins, else what was there."""
        assert self._reading is not None
        starting = self._reading.chunk.starting
        if cache.prefix is None or all(starting):
            return Prefix(keys, values)
        begins = torch.tensor(starting, device=keys.device).view(-1, 1, 1, 1)
        old = cache.prefix
        return Prefix(torch.where(begins, keys, old.keys), torch.where(begins, values, old.values))

    @torch.no_grad()
    def _observe(self, layer: int, qkv: QKV, visible: list[Tensor], attention: Attention) -> None:
        """Let the policy see the attention of the queries that it looks at, and keep those it asks for.

        Args:
            visible: the keys that each group of the layer sees, ``[B, G, S, D]``.
        """
        reading, R = self._reading, qkv.repeats
        assert reading is not None
        if reading.observed is None and not self.policy.num_queries:
            return
        groups, queries = self._of_layer[layer], qkv.grouped.unflatten(2, (R, -1))
        queries = queries[:, :, :, reading.chunk.tokens]  # [B, G, R, Q, D]
        states: list[dict[str, Tensor]] = [{} for _ in groups]
        if reading.observed is not None:
            (observed, observer), window = reading.observed, reading.windows[layer]
            some, received = queries.index_select(3, observed.columns).flatten(2, 3), []
            for index, keys in zip(groups, visible, strict=True):
                cache, heads = self.layers[index], self.head_groups[index].heads
                mask = reading.masks.of(cache, window, R, some.dtype, observed.columns)
                weights = attention.weights(some[:, heads], keys, mask)
                received.append(self._received(cache, weights.unflatten(2, (R, -1)), observed))
            states = observer(received)
        for index, state in zip(groups, states, strict=True):
            last = self._last_queries(self.layers[index], queries[:, self.head_groups[index].heads])
            reading.layers[index] = replace(reading.layers[index], state=state, queries=last)

    def _received(self, cache: LayerCache, attention: Tensor, observed: ObservedQueries) -> AttentionStats:
        assert self._reading is not None
        chunk, prefix = self._reading.chunk, self._reading.prefix
        attention = attention[..., prefix : attention.shape[-1] - chunk.suffix]
        new = chunk.positions.unsqueeze(1).expand(*attention.shape[:2], -1)
        positions = new if cache.positions is None else torch.cat((cache.positions, new), dim=2)
        span = positions.shape[2] if cache.ragged or chunk.padded else observed.width
        return AttentionStats(cache.state, attention, positions, span)

    def _last_queries(self, cache: LayerCache, queries: Tensor) -> Tensor | None:
        """The last n real queries up to the end of the chunk, from ``queries [B, G, R, Q, D]``."""
        n = self.policy.num_queries
        if not n:
            return None
        assert self._reading is not None
        before = cache.queries
        if before is None:
            before = queries.new_zeros(*queries.shape[:3], n, queries.shape[4])
        ends = torch.tensor(self._reading.chunk.valid, device=queries.device).unsqueeze(1)
        order = ends + torch.arange(n, device=queries.device)
        return in_order(torch.cat((before, queries), dim=3), order)

    def commit(self, chunk: Chunk, hidden: Tensor | None = None) -> None:
        assert self._reading is not None
        self.layers = [self._reading.layers[index] for index in range(len(self.head_groups))]
        self._reading = None

    # ---- eviction

    def evict(self, decision: Decision) -> None:
        """Let every KV head keep its best tokens within the budget, in the rows that are due."""
        windows = any(own.window for own in self.geometries)
        if self.policy.evicts or windows or any(cache.ragged for cache in self.layers):
            groups = zip(self.head_groups, self.layers, strict=True)
            self.layers = [self._evicted(group, cache, decision) for group, cache in groups]

    def _evicted(self, group: HeadGroup, cache: LayerCache, decision: Decision) -> LayerCache:
        window, held = self.geometries[group.layer].window, cache.held()
        assert held is not None and cache.positions is not None
        limit = group.budget if self.policy.evicts else cache.tokens
        limit = limit if window is None else min(limit, max(window - 1, 1))
        even = all(decision.rows) and not cache.ragged and not self.policy.drops
        if even and cache.tokens <= limit:
            return cache
        recent = max(self._recent(group.budget), 1)
        stats = CacheStats(
            cache.positions,
            decision.num_tokens,
            cache.state,
            cache.ragged,
            recent,
            keys=held[0],
            values=held[1],
            queries=cache.queries,
        )
        scores = self.policy.protected_scores(stats)
        if window is not None:  # no later query reaches back to these
            scores = scores.masked_fill(cache.positions <= decision.num_tokens - window, -torch.inf)
        if self.policy.clears_cache and all(decision.rows):
            return replace(self._empty(group), prefix=cache.prefix)
        if even:
            return keep_best(cache, scores, limit)
        return keep_best_where_due(cache, scores, decision.rows, limit, self.fixed_shapes)

    def move(self, move: FrameMove) -> None:
        """Turn the cached keys to where they stand from here."""
        groups = zip(self.head_groups, self.layers, strict=True)
        self.layers = [self._moved(self.geometries[group.layer], cache, move) for group, cache in groups]

    def _moved(self, geometry: LayerGeometry, cache: LayerCache, move: FrameMove) -> LayerCache:
        if cache.positions is None:
            return cache
        cache = cache.turned(geometry.rotary, move.position_ids(cache.positions))
        if cache.queries is None or geometry.rotary is None or move.shift is None:
            return cache
        queries = geometry.rotary.turn(cache.queries.flatten(1, 2), move.shift)
        return replace(cache, queries=queries.unflatten(1, cache.queries.shape[1:3]))

    # ---- what is held

    @property
    def device(self) -> torch.device:
        """Where it is; the CPU before the first chunk."""
        positions = next((cache.positions for cache in self.layers if cache.positions is not None), None)
        return torch.device("cpu") if positions is None else positions.device

    @property
    def mean_tokens(self) -> float:
        """Tokens that a KV head holds, in the mean over rows, layers and heads, without empty slots."""
        held = [cache.positions >= 0 for cache in self.layers if cache.positions is not None]
        heads = sum(real.shape[0] * real.shape[1] for real in held)
        return sum(int(real.sum()) for real in held) / heads if heads else 0.0

    def most_held(self, batch: int) -> list[int]:
        """Most tokens that any KV head holds, per batch row."""
        counts = [
            (cache.positions >= 0).sum(-1).amax(-1)
            if cache.ragged and cache.positions is not None
            else torch.full((batch,), cache.tokens)
            for cache in self.layers
        ]
        return list(torch.stack([count.cpu() for count in counts]).amax(0).tolist())

    def held_everywhere(self, start: int, end: int) -> Tensor:
        """Which tokens of a span of row 0 every head of every layer still holds, ``[end - start]`` bool."""
        held: Tensor | None = None
        for cache in self.layers:
            if cache.positions is None:
                return torch.zeros(end - start, dtype=torch.bool)
            span = cache.positions[0] - start  # [G, T]
            present = torch.zeros(span.shape[0], end - start + 1, dtype=torch.bool, device=span.device)
            inside = (span >= 0) & (span < end - start)
            present.scatter_(1, span.masked_fill(~inside, end - start), True)
            here = present[:, :-1].all(0)
            held = here if held is None else held & here
        return torch.zeros(end - start, dtype=torch.bool) if held is None else held.cpu()

    def rewind(self) -> None:
        """Forget everything."""
        self.layers = [self._empty(group) for group in self.head_groups]

    # ---- saving

    def file_name(self, path: str) -> str:
        """The prefix is by kind and group in files, the cache by group and kind."""
        return re.sub(r"^(\d+)\.prefix\.(\w+)$", r"prefix.\2.\1", path)

    def stored(
        self, stored: Stored, num_tokens: int, prefix: int, dtype: torch.dtype, ragged: Sequence[bool]
    ) -> dict[str, Any]:
        """Specs for `load`, of one row.

        Args:
            stored: what there is: a cache that was cleared has no tensors.
            num_tokens: tokens read so far.
            prefix: embeddings that are read before a segment, of which there is one if anything was read.
            dtype: of the backbone's states.
            ragged: of each group, whether any slot may be empty.
        """
        state, layers = self.policy.state(num_tokens), []
        for index, (group, holes) in enumerate(zip(self.head_groups, ragged, strict=True)):
            geometry = self.geometries[group.layer]
            heads = group.size(geometry.heads)
            cache = replace(self._empty(group), ragged=holes)
            if f"{index}.keys" in stored or f"{index}.positions" in stored:
                size = f"T{index}"
                cache = type(cache).stored(heads, geometry.widths, dtype, size, state)
                cache = replace(cache, ragged=holes)
                if self.policy.num_queries:
                    shape = (1, heads, geometry.repeats, self.policy.num_queries, geometry.widths[0] or None)
                    cache = replace(cache, queries=TensorSpec(dtype, shape))
            if prefix and num_tokens:
                keys, values = (TensorSpec(dtype, (1, heads, prefix, own or None)) for own in geometry.widths)
                cache = replace(cache, prefix=Prefix(keys, values))  # type: ignore[arg-type]
            layers.append(cache)
        return {"layers": layers}

    def check(self, num_tokens: int, highest: int) -> None:
        """Refuse caches that do not fit each other, or positions that are not of the first ``num_tokens``.

        Args:
            highest: the last frame position.

        Raises:
            ValueError: they are not.
        """
        empty = [cache.positions is None for cache in self.layers]
        if any(empty) and not (all(empty) and (self.policy.clears_cache or not num_tokens)):
            raise ValueError("a cache is missing")
        for cache in self.layers:
            cache.check_slots(num_tokens, highest)


def keep_best(cache: LayerCache, scores: Tensor, limit: int) -> LayerCache:
    """The ``limit`` best slots of every head, in order; no slot may be empty.

    Args:
        scores: ``[B, G, T]`` float32.
    """
    kept = _best_first(scores)[..., :limit].sort(dim=-1).values
    return cache.gathered(kept, empty=None)


def keep_best_where_due(
    cache: LayerCache, scores: Tensor, due: Sequence[bool], limit: int, fixed: bool = False
) -> LayerCache:
    """At most the ``limit`` best slots of every head in the rows that are ``due``; empty slots go in front.

    Rows and heads may end with different numbers of tokens.

    Args:
        scores: ``[B, G, T]`` float32; what has -inf goes even where there is room.
        fixed: keep ``limit`` slots, empty ones among them, without asking the device; all rows are due.
    """
    assert cache.positions is not None
    is_due = torch.tensor(due, device=scores.device).view(-1, 1, 1)
    untouched = torch.zeros_like(scores).masked_fill(cache.positions < 0, -torch.inf)
    scores = torch.where(is_due, scores, untouched)
    alive = scores > -torch.inf
    order = _best_first(scores)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    keep = alive.gather(-1, order) & (~is_due | (rank < limit))
    height = min(limit, scores.shape[-1]) if fixed and all(due) else max(int(keep.sum(-1).max()), 1)
    order, keep = order[..., :height], keep[..., :height]
    positions = cache.positions.gather(-1, order).masked_fill(~keep, -1)
    positions, by_position = positions.sort(dim=-1, stable=True)
    empty = positions < 0
    ragged = fixed or bool(empty.any())
    return cache.gathered(order.gather(-1, by_position), empty, ragged)


def _best_first(scores: Tensor) -> Tensor:
    """Slots by falling score; of equal ones the newer first, so that a batch decides as its rows alone."""
    newest_first = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    return scores.shape[-1] - 1 - newest_first
