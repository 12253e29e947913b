"""Decisions of the working memory: what every KV head keeps, and where what is kept stands.

Dimension names: B batch, G KV heads, T cached tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hiermem.memory.cache.eviction import keep_best, keep_best_where_due
from hiermem.memory.cache.head_groups import HeadGroup
from hiermem.memory.cache.layer import LayerCache, LayerGeometry
from hiermem.memory.cache.positions import frame_start
from hiermem.memory.policies import CacheStats, EvictionPolicy


@dataclass(frozen=True)
class Progress:
    """How far the rows of a batch have come.

    Attributes:
        seen: tokens read so far, per row.
        next_frame: frame position of the next token in `compact` mode, per row.
        least_frame: the least that it may be after a decision: what is read before a segment needs room.
    """

    seen: list[int]
    next_frame: list[int]
    least_frame: list[int]


@dataclass(frozen=True)
class Decider:
    """Evicts, and moves the position frame; every cache is replaced, none is written to.

    Attributes:
        positions: one of `POSITION_MODES`.
        interval: tokens between two decisions.
        recent: newest tokens that a head with a certain budget never loses.
    """

    shapes: tuple[LayerGeometry, ...]
    parts: tuple[HeadGroup, ...]
    policy: EvictionPolicy
    trained_range: int
    positions: str
    interval: int
    recent: Callable[[int], int]

    def frame_starts(self, seen: list[int], next_frame: list[int]) -> list[int]:
        """True position of frame position 0 in each row; for `compact` the row's own running offset."""
        if self.positions == "absolute":
            return [0] * len(seen)
        if self.positions == "compact":
            return [count - frame for count, frame in zip(seen, next_frame, strict=True)]
        return [frame_start(count, self.interval, self.trained_range) for count in seen]

    def decide(
        self, caches: list[LayerCache], progress: Progress, due: Sequence[bool], before: list[int]
    ) -> tuple[list[LayerCache], Progress]:
        """The caches after a decision in the rows that are ``due``, and what the next token's frames are.

        Args:
            before: `frame_starts` that the cached keys are turned to.
        """
        windows = any(shape.window for shape in self.shapes)
        if self.policy.evicts or windows or any(memory.ragged for memory in caches):
            caches = [self._evicted(part, memory, progress, due) for part, memory in enumerate(caches)]
        if self.positions == "compact":
            held = _most_held(caches, len(progress.seen))
            rows = zip(held, progress.least_frame, due, progress.next_frame, strict=True)
            frames = [max(used, least) if now else frame for used, least, now, frame in rows]
            progress = replace(progress, next_frame=frames)
            caches = [self._compacted(part, memory, frames) for part, memory in enumerate(caches)]
        elif (starts := self.frame_starts(progress.seen, progress.next_frame)) != before:
            caches = [self._reframed(part, memory, starts) for part, memory in enumerate(caches)]
        return caches, progress

    def _evicted(self, part: int, memory: LayerCache, progress: Progress, due: Sequence[bool]) -> LayerCache:
        window, budget = self.shapes[self.parts[part].layer].window, self.parts[part].budget
        assert memory.keys is not None and memory.values is not None and memory.positions is not None
        limit = budget if self.policy.evicts else memory.tokens
        limit = limit if window is None else min(limit, max(window - 1, 1))
        even = all(due) and not memory.ragged and not self.policy.drops
        if even and memory.tokens <= limit:
            return memory
        seen = torch.tensor(progress.seen, device=memory.keys.device).view(-1, 1, 1)
        recent = max(self.recent(budget), 1)
        view = CacheStats(memory.positions, seen, memory.state, memory.ragged, recent)
        scores = self.policy.protected_scores(view)
        if window is not None:
            scores = scores.masked_fill(memory.positions <= seen - window, -torch.inf)
        if self.policy.clears_cache and all(due):
            return LayerCache()
        return keep_best(memory, scores, limit) if even else keep_best_where_due(memory, scores, due, limit)

    def _reframed(self, part: int, memory: LayerCache, starts: list[int]) -> LayerCache:
        """Distance mode: turn the keys to the new frame; what lies before it is held at its edge."""
        if memory.positions is None:
            return memory
        start = torch.tensor(starts, device=memory.positions.device).view(-1, 1, 1)
        return self._turned(part, memory, (memory.positions - start).clamp(min=0))

    def _compacted(self, part: int, memory: LayerCache, next_frame: list[int]) -> LayerCache:
        """Compact mode: cached tokens take the positions right before the next query, without gaps."""
        if memory.positions is None:
            return memory
        device = memory.positions.device
        end = torch.tensor(next_frame, device=device).view(-1, 1, 1)
        frames = (torch.arange(memory.tokens, device=device) + end - memory.tokens).clamp(min=0)
        return self._turned(part, memory, frames.expand_as(memory.positions))

    def _turned(self, part: int, memory: LayerCache, frames: Tensor) -> LayerCache:
        rotary = self.shapes[self.parts[part].layer].rotary
        assert memory.keys is not None and memory.frames is not None
        keys = memory.keys if rotary is None else rotary.turn(memory.keys, frames - memory.frames)
        return replace(memory, keys=keys, frames=frames.to(torch.int32))


def _most_held(caches: Sequence[LayerCache], batch: int) -> list[int]:
    """Most tokens that any KV head holds, per batch row."""
    counts = [
        (memory.positions >= 0).sum(-1).amax(-1)
        if memory.ragged and memory.positions is not None
        else torch.full((batch,), memory.tokens)
        for memory in caches
    ]
    return list(torch.stack([count.cpu() for count in counts]).amax(0).tolist())
