"""The KV cache of all layers, pruned per KV head: what is kept, what a chunk sees of it, what is evicted.

A layer's cache is one rectangle, or, where its heads keep different numbers of tokens, several.

Dimension names: B batch, G KV heads, T cached tokens, D head width.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hiermem.memory.attention import QKV, Attention, HeadOutputs
from hiermem.memory.cache.chunk_reading import ChunkReading
from hiermem.memory.cache.frames import Decision, FrameMove, PositionFrames
from hiermem.memory.cache.head_groups import HeadGroup
from hiermem.memory.cache.layer import LayerCache, LayerGeometry, Prefix
from hiermem.memory.chunk import Chunk
from hiermem.memory.chunk_state import ChunkState, SavedRow
from hiermem.memory.policies import CacheStats, EvictionPolicy
from hiermem.memory.stored import Stored
from hiermem.memory.tensor_state import TensorSpec

EvictionCallback = Callable[[HeadGroup, LayerCache, LayerCache], None]
"""Told of a group's cache before and after an eviction."""


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
        self._reading: ChunkReading | None = None

    def _empty(self, group: HeadGroup) -> LayerCache:
        return self.geometries[group.layer].cache

    # ---- reading one chunk

    @property
    def tokens(self) -> int:
        """Most tokens that any KV head holds."""
        return max([0, *(cache.tokens for cache in self.layers)])

    @property
    def complete(self) -> bool:
        """Whether every layer has read the present chunk."""
        return self._reading is not None and len(self._reading.layers) == len(self.head_groups)

    def end_chunk(self) -> None:
        self._reading = None

    def begin(self, chunk: Chunk) -> None:
        self._reading = ChunkReading(chunk, self.geometries, self.head_groups, self.layers, self.policy)

    def attend(self, layer: int, qkv: QKV, attention: Attention) -> HeadOutputs:
        assert self._reading is not None
        return self._reading.attend(self._of_layer[layer], layer, qkv, attention)

    def commit(self, chunk: Chunk, hidden: Tensor | None = None) -> None:
        assert self._reading is not None
        self.layers = [self._reading.layers[index] for index in range(len(self.head_groups))]
        self._reading = None

    # ---- eviction

    def evict(self, decision: Decision, on_evicted: EvictionCallback | None = None) -> None:
        """Let every KV head keep its best tokens within the budget, in the rows that are due.

        Args:
            on_evicted: told of each group's cache before and after.
        """
        before = self.layers
        windows = any(layer.window for layer in self.geometries)
        if self.policy.evicts or windows or any(cache.ragged for cache in self.layers):
            groups = zip(self.head_groups, self.layers, strict=True)
            self.layers = [self._evicted(group, cache, decision) for group, cache in groups]
        if on_evicted is not None:
            for group, old, new in zip(self.head_groups, before, self.layers, strict=True):
                on_evicted(group, old, new)

    def _evicted(self, group: HeadGroup, cache: LayerCache, decision: Decision) -> LayerCache:
        window = self.geometries[group.layer].window
        assert cache.positions is not None
        limit = self._limit(group, cache)
        even = all(decision.rows) and not cache.ragged and not self.policy.drops
        if even and cache.tokens <= limit:
            return cache
        scores = self.policy.protected_scores(self._stats(group, cache, decision.num_tokens))
        if window is not None:  # no later query reaches back to these
            scores = scores.masked_fill(cache.positions <= decision.num_tokens - window, -torch.inf)
        if self.policy.clears_cache and all(decision.rows):
            return replace(self._empty(group), prefix=cache.prefix)
        if even:
            return keep_best(cache, scores, limit)
        return keep_best_where_due(cache, scores, decision.rows, limit, self.fixed_shapes)

    def _limit(self, group: HeadGroup, cache: LayerCache) -> int:
        """Most slots that an eviction leaves of a group's cache."""
        window = self.geometries[group.layer].window
        limit = group.budget if self.policy.evicts else cache.tokens
        return limit if window is None else min(limit, max(window - 1, 1))

    @property
    def full(self) -> bool:
        """Whether the cache is what an eviction leaves of any longer text: its shapes do not change again."""
        if self.policy.clears_cache:
            return not self.tokens
        groups = zip(self.head_groups, self.layers, strict=True)
        return self.policy.evicts and all(
            cache.tokens == self._limit(group, cache) for group, cache in groups
        )

    def _stats(self, group: HeadGroup, cache: LayerCache, num_tokens: Tensor) -> CacheStats:
        """A group's cached tokens as the policy sees them."""
        held = cache.held()
        assert held is not None and cache.positions is not None
        return CacheStats(
            cache.positions,
            num_tokens,
            cache.state,
            cache.ragged,
            max(self._recent(group.budget), 1),  # the newest token always stays, so no head is ever empty
            keys=held[0],
            values=held[1],
            queries=cache.queries,
            position_ids=cache.position_ids,
            rotary=self.geometries[group.layer].rotary,
            layer=group.layer,
            heads=group.heads,
        )

    def scores(self, index: int, num_tokens: Sequence[int]) -> Tensor:
        """Scores that the policy gives a group's cached tokens at this moment, none of them protected,
        ``[B, G, T]`` float32.

        Args:
            index: of the group.
            num_tokens: tokens that each row has read.
        """
        counts = torch.tensor(num_tokens, device=self.device).view(-1, 1, 1)
        return self.policy.every_score(self._stats(self.head_groups[index], self.layers[index], counts))

    def close_gaps(
        self, decision: Decision, frames: PositionFrames, least: Sequence[int]
    ) -> tuple[PositionFrames, FrameMove]:
        """The frames in which what is left after an eviction stands side by side, and the move there.

        Args:
            least: as in `PositionFrames.close_gaps`.
        """
        held = self.most_held(len(frames.num_tokens))
        closed = frames.close_gaps(held, least, decision.rows)
        return closed, closed.moved_from(frames, decision.num_tokens.device)

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
        """Device of the cache; the CPU before the first chunk."""
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
        if not any(cache.ragged for cache in self.layers):
            return [self.tokens] * batch
        counts = [
            (cache.positions >= 0).sum(-1).amax(-1)
            if cache.ragged and cache.positions is not None
            else torch.full((batch,), cache.tokens)
            for cache in self.layers
        ]
        return list(torch.stack([count.cpu() for count in counts]).amax(0).tolist())

    def held_everywhere(self, start: int, end: int) -> Tensor:
        """Tokens of a span of row 0 that every head of every layer still holds, ``[end - start]`` bool."""
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

    def specs(self, stored: Stored, row: SavedRow) -> dict[str, Any]:
        layers, n = [], self.policy.num_queries
        for index, (group, ragged) in enumerate(zip(self.head_groups, row.ragged, strict=True)):
            geometry, cache = self.geometries[group.layer], self._empty(group)
            heads = group.size(geometry.heads)
            if f"{index}.positions" in stored:  # a cache that was cleared has no tensors
                state = self.policy.state(row.num_tokens)
                cache = type(cache).stored(heads, geometry.widths, row.dtype, f"T{index}", state)
                shape = (1, heads, geometry.repeats or None, n, geometry.widths[0] or None)
                queries: Any = TensorSpec(row.dtype, shape) if n else None
                cache = replace(cache, queries=queries)
            if row.prefix and row.num_tokens:
                widths = (width or None for width in geometry.widths)
                pair: Any = [TensorSpec(row.dtype, (1, heads, row.prefix, width)) for width in widths]
                cache = replace(cache, prefix=Prefix(*pair))
            layers.append(replace(cache, ragged=ragged))
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
    kept = best_first(scores)[..., :limit].sort(dim=-1).values
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
    alive = scores > -torch.inf  # a policy that drops says so by its score
    order = best_first(scores)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    keep = alive.gather(-1, order) & (~is_due | (rank < limit))
    height = min(limit, scores.shape[-1]) if fixed and all(due) else max(int(keep.sum(-1).max()), 1)
    order, keep = order[..., :height], keep[..., :height]
    positions = cache.positions.gather(-1, order).masked_fill(~keep, -1)
    # Back into the order of the document, where -1 puts empty slots in front.
    positions, by_position = positions.sort(dim=-1, stable=True)
    empty = positions < 0
    ragged = fixed or bool(empty.any())
    return cache.gathered(order.gather(-1, by_position), empty, ragged)


def best_first(scores: Tensor) -> Tensor:
    """Slots by falling score; of equal ones the newer first, so that a batch decides as its rows alone."""
    newest_first = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    return scores.shape[-1] - 1 - newest_first
