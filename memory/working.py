"""Working memory: the KV cache of all layers, pruned per KV head to a budget and carried across segments.

A layer's cache is one rectangle, or, where its heads keep different numbers of tokens, several (`heads.py`).

Tokens enter chunk by chunk. Every `update_interval` tokens a decision is made: the policy scores what is
cached, each KV head keeps its own best tokens within the budget, the rest is freed, and the position frame
moves on. Between two decisions nothing is evicted or turned, so cutting an interval into other chunks
changes nothing. Tensors are replaced, never written in place: a copy of the memory costs nothing, and a
chunk that fails half-way leaves the memory as it was.

Dimension names: B batch, G KV heads, R query heads per KV head, Q new queries, T cached tokens, S = T + Q,
D head width.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.cache.decisions import Decider, Progress
from hiermem.memory.cache.head_groups import HeadGroup, plan_head_groups
from hiermem.memory.cache.layer import LayerCache, LayerGeometry
from hiermem.memory.chunk import Chunk, additive, around_tokens, seen_causally, seen_exactly
from hiermem.memory.hmt.segments import SegmentRecurrence
from hiermem.memory.hmt.surroundings import Surroundings
from hiermem.memory.mamba.cache import MambaCache
from hiermem.memory.mamba.local_attention import Attend
from hiermem.memory.policies import (
    AttentionStats,
    EvictionPolicy,
    ObservedQueries,
    Observer,
)
from hiermem.memory.stored import Stored, read_bookkeeping
from hiermem.memory.working_config import WorkingMemoryConfig


class WorkingMemory:
    """The KV cache of a backbone for a batch of documents.

    One chunk is read as `begin`, then for each part `append` and, where the policy asks, for each layer
    `observe`, then `commit`. Rows of the batch may be at different places of their documents.

    Attributes:
        parts: which heads of which layer share a cache; one part a layer where all keep the same.
        caches: one `LayerCache` per part.
        seen: tokens read so far, per batch row.
        next_frame: frame position of the next token in `compact` mode, per batch row.
        columns: width of the input read so far, padding included.
        surroundings: what is read around segments; None where nothing is.
        fading: what Mamba heads carry, in place of the cache of the heads they replace; None: there are none.
    """

    def __init__(
        self,
        config: WorkingMemoryConfig,
        shapes: Sequence[LayerGeometry],
        trained_range: int,
        batch: int = 1,
        policy: EvictionPolicy | None = None,
        recurrence: SegmentRecurrence | None = None,
        fading: MambaCache | None = None,
    ) -> None:
        if config.positions == "distance" and config.update_interval > trained_range:
            raise InputError(
                f"{config.update_interval} tokens between two evictions exceed the backbone's trained range "
                f"of {trained_range} positions: lower the chunk (update_interval)."
            )
        replaced = () if fading is None else fading.replaced
        self.parts = plan_head_groups(shapes, config.budget, config.head_shares, config.sinks, replaced)
        self.config = config
        self.shapes = tuple(shapes)
        self.trained_range = trained_range
        self.policy = policy or config.new_policy()
        if config.positions == "compact" and config.policy != "none":
            self._check_range(0 if recurrence is None else recurrence.lead + recurrence.tail)
        self._decider = Decider(
            self.shapes,
            self.parts,
            self.policy,
            trained_range,
            config.positions,
            config.update_interval,
            config.recent,
        )
        self.caches = [LayerCache() for _ in self.parts]
        self._of_layer: list[list[int]] = [[] for _ in self.shapes]
        for index, part in enumerate(self.parts):
            self._of_layer[part.layer].append(index)
        self.columns = 0
        self.peak_tokens = 0
        self.surroundings = None if recurrence is None else Surroundings(recurrence, len(self.parts))
        self.fading = fading
        self.seen, self.next_frame = [0] * batch, [self._first_frame(0)] * batch
        self._chunk: Chunk | None = None
        self._tallest = 0
        self._shown: ObservedQueries | None = None
        self._observer: Observer | None = None
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._pending_state: dict[int, dict[str, Tensor]] = {}
        self._masks: dict[tuple[int, int, bool], Tensor] = {}

    def _check_range(self, around: int) -> None:
        """Refuse what does not fit the trained range without gaps.

        Args:
            around: embeddings that are read before and after a segment.

        Raises:
            InputError: it does not.
        """
        interval, most = self.config.update_interval, max(part.budget for part in self.parts)
        if self.policy.clears_cache:  # the budget, of which it makes no use, needs no room
            if interval + around > self.trained_range:
                raise InputError(
                    f"Segments of {interval} tokens, with {around} around them, exceed the backbone's "
                    f"trained range of {self.trained_range} positions: lower the segment and update_interval."
                )
        elif interval + most > self.trained_range:
            raise InputError(
                f"A budget of {most} and {interval} tokens between evictions exceed the backbone's trained "
                f"range of {self.trained_range} positions: lower one of them."
            )

    @property
    def recurrence(self) -> SegmentRecurrence | None:
        """What segments hand on beside the cache; None where nothing is."""
        return None if self.surroundings is None else self.surroundings.recurrence

    @property
    def _beside(self) -> list[Surroundings | MambaCache]:
        """What is kept beside the cache."""
        return [own for own in (self.surroundings, self.fading) if own is not None]

    # ---- reading one chunk

    def take_rows(self, batch: int) -> None:
        """Set the number of rows, which is open until something has been read."""
        if len(self.seen) != batch:
            if any(self.seen):
                raise InputError(f"The memory holds {len(self.seen)} rows, the input has {batch}.")
            self.seen, self.next_frame = [0] * batch, [self._first_frame(0)] * batch
            if self.recurrence is not None:
                self.recurrence.take_rows(batch)

    def room(self, rows: Sequence[bool]) -> int:
        """How many tokens may be read until a decision is due or a segment ends in one of the chosen rows."""
        interval = self.config.update_interval
        chosen = [seen for seen, wanted in zip(self.seen, rows, strict=True) if wanted]
        room = min(interval - seen % interval for seen in chosen)
        return room if self.recurrence is None else min(room, *map(self.recurrence.room, chosen))

    def begin(self, valid: Sequence[int], width: int, device: torch.device) -> Chunk:
        """Start a chunk of ``width`` columns of which each row's first ``valid`` are real tokens.

        Its frames have more columns where a segment begins or ends in it.
        """
        columns = torch.arange(width, device=device)
        seen = torch.tensor(self.seen, device=device).unsqueeze(1)
        padded = any(count < width for count in valid)
        starts = self._frame_starts(self.seen)
        highest = max(a - b + n for a, b, n in zip(self.seen, starts, valid, strict=True))
        if highest > self.trained_range and all(shape.rotary is None for shape in self.shapes):
            raise InputError(
                f"This backbone has learned positions, which end at {self.trained_range}: use the position "
                f"mode distance, or compact with a budget that leaves room for {width} new tokens."
            )
        positions = seen + columns
        frames = positions - torch.tensor(starts, device=device).unsqueeze(1)
        if padded:
            real = columns < torch.tensor(valid, device=device).unsqueeze(1)
            positions = positions.masked_fill(~real, -1)
            frames = frames.masked_fill(~real, 0)
        self._forget_chunk()
        self._tallest = self.live_tokens
        self._chunk = Chunk(positions, frames, tuple(valid), tuple(self.seen), padded)
        if self.surroundings is not None:
            first = seen - torch.tensor(starts, device=device).unsqueeze(1)
            self._chunk = self.surroundings.around(self._chunk, first, self.trained_range - 1)
        return self._chunk

    @property
    def chunk(self) -> Chunk:
        """The chunk that is being read."""
        if self._chunk is None:
            raise RuntimeError("no chunk is being read: call begin first")
        return self._chunk

    def parts_of(self, layer: int) -> list[int]:
        """Indices of a layer's parts, in the order of its heads."""
        return self._of_layer[layer]

    def append(self, part: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a chunk's keys and values ``[B, G, Q, D]``; returns all that may be seen, ``S`` long."""
        memory, chunk = self.caches[part], self.chunk
        prefix = None
        if self.surroundings is not None:
            lead = slice(chunk.lead)
            prefix = self.surroundings.prefix(part, chunk, keys[:, :, lead], values[:, :, lead])
        keys, values = keys[:, :, chunk.lead :], values[:, :, chunk.lead :]
        if memory.keys is not None and memory.values is not None:
            keys = torch.cat((memory.keys, keys), dim=2)
            values = torch.cat((memory.values, values), dim=2)
        stored = slice(keys.shape[2] - chunk.tail)
        self._pending[part] = (keys[:, :, stored], values[:, :, stored])
        if prefix is None:
            return keys, values
        return torch.cat((prefix.keys, keys), dim=2), torch.cat((prefix.values, values), dim=2)

    def mask(self, part: int, repeats: int, dtype: torch.dtype, shown: bool = False) -> Tensor | None:
        """Additive attention mask of the current chunk, broadcastable to ``[B, G, R * Q, S]``.

        None where a single query sees everything. Query heads of a KV group are laid out as R * Q rows.

        Args:
            shown: only the rows of the `shown` queries, and perhaps only the last columns: all see what
                stands before.
        """
        chunk, memory, window = self.chunk, self.caches[part], self._window_in_force(part)
        width, device = chunk.positions.shape[1], chunk.positions.device
        around = bool(chunk.lead or chunk.tail)
        there = None if self.surroundings is None else self.surroundings.there
        exact = memory.ragged or chunk.padded or window
        if not exact and width == 1 and not around and there is None:
            return None
        if shown:
            columns = self.shown.columns
        else:
            columns = torch.arange(-chunk.lead, width + chunk.tail, device=device).clamp(-1, width)
        prefix = self._prefix_length
        if exact:
            visible = seen_exactly(memory, chunk, columns, window)
            visible = around_tokens(visible, chunk, columns, prefix, there) if prefix else visible
            return additive(visible, repeats, dtype)
        # The newest keys stand last, so one mask serves all parts.
        height = memory.tokens if prefix else 0 if shown else self._tallest
        key = (height, repeats, shown)
        if key not in self._masks:
            visible = seen_causally(height, chunk, columns)[None, None]
            visible = around_tokens(visible, chunk, columns, prefix, there) if prefix else visible
            self._masks[key] = additive(visible, repeats, dtype)
        return self._masks[key][..., max(height - memory.tokens, 0) :]

    @property
    def _prefix_length(self) -> int:
        """Keys that stand before the cached ones in the present chunk."""
        return 0 if self.surroundings is None else self.surroundings.length(self.chunk)

    @property
    def shown(self) -> ObservedQueries:
        """The chunk's queries that the policy looks at.

        They depend on true positions alone, so cutting a text into other chunks shows the same queries. Where
        rows differ, all columns are shown.
        """
        if self._shown is None:
            chunk, period = self.chunk, self.policy.period
            columns = torch.arange(chunk.positions.shape[1], device=chunk.positions.device)
            if not chunk.padded and len({seen % period for seen in self.seen}) == 1:
                columns = columns[self.policy.observed_mask(columns + self.seen[0])]
            positions = chunk.positions[:, columns]
            counted = (positions >= 0) & self.policy.observed_mask(positions)
            width = chunk.positions.shape[1]
            self._shown = ObservedQueries(columns, positions, counted, tuple(self.seen), chunk.valid, width)
            self._observer = self.policy.observer(self._shown)
        return self._shown

    def observe(self, layer: int, attentions: Sequence[Tensor]) -> None:
        """Let the policy see the attention of the `shown` queries, ``[B, G, R, Q', S]`` of each part."""
        assert self._observer is not None
        parts = self.parts_of(layer)
        seen = [self._received(part, own) for part, own in zip(parts, attentions, strict=True)]
        self._pending_state.update(zip(parts, self._observer(seen), strict=True))

    def _received(self, part: int, attention: Tensor) -> AttentionStats:
        chunk, memory = self.chunk, self.caches[part]
        attention = attention[..., self._prefix_length : attention.shape[-1] - chunk.tail]
        new = chunk.positions.unsqueeze(1).expand(*attention.shape[:2], -1)
        positions = new if memory.positions is None else torch.cat((memory.positions, new), dim=2)
        span = positions.shape[2] if memory.ragged or chunk.padded else self.shown.width
        return AttentionStats(memory.state, attention, positions, span)

    def fade(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """What the Mamba heads of a layer say to the present chunk, ``[B, H', lead + Q + tail, D]``.

        Args:
            query: ``[B, H, lead + Q + tail, D]``, of all its heads.
            key, value: ``[B, G, lead + Q + tail, D]``.
            attend: the backbone's attention.
        """
        assert self.fading is not None
        there = None if self.surroundings is None else self.surroundings.there
        return self.fading.read(layer, self.chunk, query, key, value, there, attend)

    @property
    def complete(self) -> bool:
        """Whether every layer has read the current chunk."""
        return len(self._pending) == len(self.parts)

    def commit(self) -> None:
        """Take the chunk in; where an interval is complete, evict and move the frame."""
        chunk = self.chunk
        if not self.complete:
            raise RuntimeError("a chunk was committed that not every layer has read")
        self.caches = [self._extended_cache(index, memory, chunk) for index, memory in enumerate(self.caches)]
        for beside in self._beside:
            beside.commit()
        before = self._frame_starts(self.seen)
        self.seen = [seen + new for seen, new in zip(self.seen, chunk.valid, strict=True)]
        self.columns += chunk.positions.shape[1]
        self.next_frame = [frame + new for frame, new in zip(self.next_frame, chunk.valid, strict=True)]
        self.peak_tokens = max(self.peak_tokens, self.live_tokens)
        self._forget_chunk()
        interval = self.config.update_interval
        due = [new > 0 and seen % interval == 0 for seen, new in zip(self.seen, chunk.valid, strict=True)]
        if any(due):
            self._decide(due, before)

    def settle(self) -> None:
        """Decide now, in the middle of an interval: what is cached shrinks to the budget."""
        self._decide([True] * len(self.seen), self._frame_starts(self.seen))

    def _forget_chunk(self) -> None:
        self._chunk = self._shown = self._observer = None
        self._pending.clear()
        self._pending_state.clear()
        self._masks.clear()
        for beside in self._beside:
            beside.forget_chunk()

    def _extended_cache(self, index: int, memory: LayerCache, chunk: Chunk) -> LayerCache:
        keys, values = self._pending[index]
        shape = (*keys.shape[:2], chunk.positions.shape[1])
        positions = chunk.positions.unsqueeze(1).expand(shape)
        frames = chunk.frames[:, chunk.tokens].to(torch.int32).unsqueeze(1).expand(shape)
        if memory.positions is not None and memory.frames is not None:
            positions = torch.cat((memory.positions, positions), dim=2)
            frames = torch.cat((memory.frames, frames), dim=2)
        state = self._pending_state.get(index, {})
        return LayerCache(keys, values, positions, frames, state, memory.ragged or chunk.padded)

    # ---- masks

    def _window_in_force(self, part: int) -> int | None:
        """The layer's sliding window, or None while every token still lies within it."""
        window, chunk = self.shapes[self.parts[part].layer].window, self.chunk
        if window is None or max(self.seen) + chunk.positions.shape[1] <= window:
            return None
        return window

    def _frame_starts(self, seen: list[int]) -> list[int]:
        return self._decider.frame_starts(seen, self.next_frame)

    def _decide(self, due: Sequence[bool], before: list[int]) -> None:
        progress = Progress(self.seen, self.next_frame, [*map(self._first_frame, self.seen)])
        self.caches, progress = self._decider.decide(self.caches, progress, due, before)
        self.next_frame = progress.next_frame
        if self.fading is None:
            return
        after = self._frame_starts(self.seen)
        if after != before:
            self.fading.moved([old - new for old, new in zip(before, after, strict=True)])
        if self.policy.clears_cache:
            self.fading.decided()

    def _first_frame(self, seen: int) -> int:
        """Frame of a row's next token where nothing is cached: without gaps, the lead comes first."""
        if self.recurrence is None or self.config.positions != "compact":
            return 0
        return -self.recurrence.offsets(seen)[0]

    # ---- whole-memory operations

    @property
    def live_tokens(self) -> int:
        """Most tokens that any KV head holds now."""
        return max((memory.tokens for memory in self.caches), default=0)

    @property
    def mean_tokens(self) -> float:
        """Tokens that a KV head holds now, in the mean over rows, layers and heads, without empty slots."""
        held = [memory.positions >= 0 for memory in self.caches if memory.positions is not None]
        heads = sum(there.shape[0] * there.shape[1] for there in held)
        return sum(int(there.sum()) for there in held) / heads if heads else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, bookkeeping included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    def copy(self) -> "WorkingMemory":
        """An independent memory with the same content; shares tensors, which are never written in place."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)  # with its parts, which need not be planned again
        twin.caches, twin.seen, twin.next_frame = list(self.caches), list(self.seen), list(self.next_frame)
        twin._pending, twin._pending_state, twin._masks = {}, {}, {}
        twin.surroundings = None if self.surroundings is None else self.surroundings.copy()
        twin.fading = None if self.fading is None else self.fading.copy()
        twin._chunk = twin._shown = twin._observer = None
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "WorkingMemory":
        return self.copy()

    def __getstate__(self) -> dict[str, Any]:
        return self.copy().__dict__  # without what belongs to a chunk

    def under(self, config: WorkingMemoryConfig, policy: EvictionPolicy) -> "WorkingMemory":
        """The same content under other settings; nothing may have been evicted by head shares yet."""
        assert len(self.parts) == len(self.shapes) and self.fading is None
        twin = WorkingMemory(config, self.shapes, self.trained_range, len(self.seen), policy)
        twin.caches = [self.caches[part.layer].of_heads(part.heads) for part in twin.parts]
        twin._take_bookkeeping(self.bookkeeping())
        return twin

    def rewind(self) -> list[Tensor]:
        """Go back to where the present segments began, of which nothing may be carried into them.

        Returns:
            token ids of each row since then, ``[n]`` int64.

        Raises:
            InputError: rows with Mamba heads are at different places of their segments.
        """
        assert self.policy.clears_cache and self.recurrence is not None
        begun = self.recurrence.begun
        if self.fading is not None and len({len(own) for own in begun}) > 1:
            raise InputError(
                "Rows at different places of their segments cannot be read on with Mamba heads and the query "
                "half: read them one by one."
            )
        self.caches = [LayerCache() for _ in self.parts]
        self.seen = [seen - len(own) for seen, own in zip(self.seen, begun, strict=True)]
        self.next_frame = [self._first_frame(seen) for seen in self.seen]
        for beside in self._beside:
            beside.rewind()
        return begun

    def restore(self, moment: "WorkingMemory") -> None:
        """Be again what `copy` gave at an earlier moment."""
        vars(self).update(vars(moment.copy()))

    def detach(self) -> None:
        """Cut the gradients: what was read so far is a constant from here."""
        self.caches = [memory.detached() for memory in self.caches]
        for beside in self._beside:
            beside.detach()

    def select_rows(self, index: Tensor) -> None:
        """Reorder, repeat or drop batch rows in place: row i becomes old row ``index[i]`` (int64)."""
        self.caches = [memory.rows(index) if memory.tokens else memory for memory in self.caches]
        for beside in self._beside:
            beside.select_rows(index)
        chosen = index.tolist()
        self.seen = [self.seen[row] for row in chosen]
        self.next_frame = [self.next_frame[row] for row in chosen]

    def held_everywhere(self, start: int, end: int) -> Tensor:
        """Which tokens of a span of row 0 every head of every layer still holds, ``[end - start]`` bool."""
        held: Tensor | None = None
        for memory in self.caches:
            if memory.positions is None:
                return torch.zeros(end - start, dtype=torch.bool)
            span = memory.positions[0] - start  # [G, T]
            present = torch.zeros(span.shape[0], end - start + 1, dtype=torch.bool, device=span.device)
            inside = (span >= 0) & (span < end - start)
            present.scatter_(1, span.masked_fill(~inside, end - start), True)
            here = present[:, :-1].all(0)
            held = here if held is None else held & here
        return torch.zeros(end - start, dtype=torch.bool) if held is None else held.cpu()

    # ---- saving

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, named ``<part>.<tensor>`` or as the surroundings name them; the rest is in
        `bookkeeping`."""
        named = {
            f"{part}.{name}": tensor
            for part, memory in enumerate(self.caches)
            for name, tensor in memory.tensors().items()
        }
        for beside in self._beside:
            named |= beside.tensors()
        return named

    def bookkeeping(self) -> dict[str, Any]:
        """JSON-ready rest of the state."""
        return {
            "seen": self.seen,
            "columns": self.columns,
            "peak_tokens": self.peak_tokens,
            "next_frame": self.next_frame,
            "holes": [memory.ragged for memory in self.caches],
        }

    def load_state(
        self, tensors: dict[str, Tensor], bookkeeping: dict[str, Any], dtype: torch.dtype, vocabulary: int
    ) -> None:
        """Take the place of a memory of one row that was saved with `state_dict` and `bookkeeping`.

        Args:
            dtype: of the backbone's states.
            vocabulary: how many tokens it knows.

        Raises:
            ValueError: something is missing, left over or not as such a memory leaves it.
        """
        counts = read_bookkeeping(bookkeeping, len(self.parts))
        (seen,) = counts["seen"]
        stored, shapes = Stored(tensors), [*map(self._shape_of, self.parts)]
        state = self.policy.state(seen)
        self.caches = [
            LayerCache.load(stored.within(str(part)), *shape, state, dtype, ragged)
            for part, (shape, ragged) in enumerate(zip(shapes, counts["holes"], strict=True))
        ]
        if self.surroundings is not None:
            self.surroundings.load(stored, seen, dtype, vocabulary, shapes)
        lead = 0 if self.recurrence is None else self.recurrence.lead
        if self.fading is not None:
            decided = self.policy.clears_cache and seen >= self.config.update_interval
            self.fading.load(stored.within("fading"), seen > 0, decided, lead, dtype)
        stored.done()
        self._check_counts(counts, lead)
        self._take_bookkeeping(counts)

    def _shape_of(self, part: HeadGroup) -> tuple[int, tuple[int, int]]:
        """Heads of a part, and the widths of their keys and values."""
        shape = self.shapes[part.layer]
        heads = part.heads
        return len(range(shape.heads)[heads]) if isinstance(heads, slice) else len(heads), shape.widths

    def _check_counts(self, counts: dict[str, Any], lead: int) -> None:
        """Refuse caches and numbers that do not fit each other."""
        (seen,), (frame,) = counts["seen"], counts["next_frame"]
        empty = [memory.keys is None for memory in self.caches]
        if any(empty) and not (all(empty) and (self.policy.clears_cache or not seen)):
            raise ValueError("a cache is missing")
        for memory in self.caches:
            memory.check_slots(seen, seen + self.trained_range)
        if not self.live_tokens <= counts["peak_tokens"]:
            raise ValueError("more tokens are cached than ever were")
        if frame > seen + lead:
            raise ValueError("next_frame leaves its range")

    def _take_bookkeeping(self, bookkeeping: dict[str, Any]) -> None:
        self.seen = list(bookkeeping["seen"])
        self.columns = int(bookkeeping["columns"])
        self.peak_tokens = int(bookkeeping["peak_tokens"])
        self.next_frame = list(bookkeeping["next_frame"])


def chunks(
    memory: WorkingMemory, lengths: Sequence[int], size: int, width: int | None = None
) -> Iterator[tuple[int, int]]:
    """Cut left-aligned rows of ``lengths`` tokens into pieces that end where a decision is due.

    Args:
        size: most tokens in a piece.
        width: columns of the rows, padding included; None if the longest has none.

    Yields first column and width of each piece; each must be read before the next is asked for.

    Raises:
        InputError: see `SegmentRecurrence.check_begins`.
    """
    at, end = 0, max(lengths) if width is None else width
    while at < end:
        active = [length > at for length in lengths]
        take = min(size, end - at, memory.room(active) if any(active) else end)
        if memory.recurrence is not None:
            memory.recurrence.check_begins([max(length - at, 0) for length in lengths], take)
        yield at, take
        at += take
