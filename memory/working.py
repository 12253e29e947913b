"""Working memory: what a backbone carries through a batch of documents of any length.

It composes the KV cache, the recurrence of segments and the states of Mamba heads. Tokens enter chunk by
chunk. Every `update_interval` tokens the cache is pruned: the policy scores what is cached, each KV head
keeps its own best tokens within the budget, the rest is freed, and the position frame moves on. Between two
evictions nothing is dropped or turned, so cutting an interval into other chunks changes nothing. Tensors are
replaced, never written in place: a copy of the memory costs nothing, and a chunk that fails half-way leaves
the memory as it was.

Dimension names: B batch, H query heads, G KV heads, Q new tokens, T columns that the backbone reads, D head
width.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.attention import QKV, Attention
from hiermem.memory.cache.frames import Counts, Decision, PositionFrames
from hiermem.memory.cache.head_groups import plan_head_groups
from hiermem.memory.cache.kv_cache import KVCache
from hiermem.memory.cache.layer import LayerCache, LayerGeometry
from hiermem.memory.chunk import Chunk
from hiermem.memory.chunk_state import ChunkState, ComposedState, SavedRow
from hiermem.memory.hmt.segments import Encoder, SegmentRecurrence, again
from hiermem.memory.mamba.cache import MambaCache
from hiermem.memory.policies import EvictionPolicy
from hiermem.memory.stored import Stored, read_bookkeeping
from hiermem.memory.tier import CacheListener
from hiermem.memory.working_config import WorkingMemoryConfig


class WorkingMemory(ComposedState):
    """The working memory of a backbone for a batch of documents.

    One chunk is read as `begin`, then `attend` for each layer, then `commit`. Rows of the batch may be at
    different places of their documents.

    Args:
        geometries: of the backbone's layers.
        trained_range: positions that the backbone was trained on.
        batch: rows.
        policy: what scores cached tokens; None: as configured.
        recurrent: states carried with the cache: a `SegmentRecurrence`, a `MambaCache`, others.

    Raises:
        InputError: the settings do not fit the backbone.

    Attributes:
        frames: how far the rows have come.
        listener: hears of the cache before decisions and after them; None: nobody asks.
    """

    _chunk: Chunk | None
    _before: "WorkingMemory | None"
    _next: tuple[PositionFrames, Decision | None, list[int]] | None

    def __init__(
        self,
        config: WorkingMemoryConfig,
        geometries: Sequence[LayerGeometry],
        trained_range: int,
        batch: int = 1,
        policy: EvictionPolicy | None = None,
        recurrent: Sequence[ChunkState] = (),
    ) -> None:
        self.config, self.geometries, self.trained_range = config, tuple(geometries), trained_range
        self.policy = policy or config.new_policy()
        self.states = list(recurrent)
        replaced = () if self.mamba is None else self.mamba.heads.groups
        groups = plan_head_groups(geometries, config.budget, config.head_shares, config.sinks, replaced)
        around = 0 if self.recurrence is None else self.recurrence.prefix + self.recurrence.suffix
        check_range(config, self.policy, trained_range, max(group.budget for group in groups), around)
        self.states.insert(0, KVCache(self.geometries, groups, self.policy, config.recent))
        counts, frame = Counts((0,) * batch), (self._least_frame(0),) * batch
        self.frames = PositionFrames(config.positions, config.update_interval, trained_range, counts, frame)
        self.listener: CacheListener | None = None
        self.end_chunk()

    @property
    def cache(self) -> KVCache:
        """The KV cache."""
        cache = self.states[0]
        assert isinstance(cache, KVCache)
        return cache

    @property
    def recurrence(self) -> SegmentRecurrence | None:
        """HMT's recurrence of segments; None: there is none."""
        return self.find(SegmentRecurrence)

    @property
    def mamba(self) -> MambaCache | None:
        """States of Mamba heads, in place of the cache of the heads they replace; None: there are none."""
        return self.find(MambaCache)

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Tokens read so far, per batch row."""
        return self.frames.num_tokens

    # ---- reading one chunk

    def take_rows(self, batch: int) -> None:
        """Set the number of rows, which is open until something has been read."""
        if len(self.num_tokens) == batch:
            return
        if any(self.num_tokens):
            raise InputError(f"The memory holds {len(self.num_tokens)} rows, the input has {batch}.")
        self.frames = self.frames.select_rows([0] * batch)
        if self.recurrence is not None:
            self.recurrence.take_rows(batch)

    def room(self, rows: Sequence[bool]) -> int:
        """Tokens that may be read until an eviction is due or a segment ends in a chosen row."""
        room = self.frames.room(rows)
        if self.recurrence is None:
            return room
        counts = (count for count, reads in zip(self.num_tokens, rows, strict=True) if reads)
        return min(room, *map(self.recurrence.room, counts))

    @property
    def learned_positions(self) -> bool:
        """Whether positions are learned, so that there are no others than `trained_range`."""
        return all(layer.rotary is None for layer in self.geometries)

    @property
    def positions_left(self) -> int:
        """Tokens until learned positions end; where they are none such, as many as one may want."""
        return self.trained_range - max(self.frames.first()) if self.learned_positions else sys.maxsize

    def begin(self, ids: Tensor, valid: Sequence[int], encoder: Encoder | None = None) -> Chunk:
        """Start a chunk ``ids [B, Q]`` int64 of which each row's first ``valid`` are real tokens.

        A segment that recalls by its first half, and was begun with less than that, is read again with what
        comes: so the pieces of a text are read as the whole of it up to there. The chunk then has more tokens
        than were asked for; it also has more columns than tokens where a segment begins or ends in it.

        Args:
            encoder: what makes embeddings and summaries, wanted where segments hand something on.
        """
        self.end_chunk()
        width, requested, recurrence = ids.shape[1], None, self.recurrence
        if recurrence is not None:
            short = recurrence.falls_short(valid)
            # All else waits for `commit`, but not what a segment begins with.
            self._before = self.copy() if short or recurrence.begins(self.num_tokens, valid) else None
            if short:
                ids, valid, requested = self._rewound(recurrence.segment_ids, ids, valid)
        chunk = self.frames.chunk(ids, valid, self.learned_positions)
        if recurrence is not None:
            assert encoder is not None
            chunk = recurrence.surround(chunk, self.frames, encoder)
        chunk = replace(chunk, requested=requested)
        for state in self.states:
            state.begin(chunk)
        after, decision = self.frames.next(chunk, width, self.cache.tokens + chunk.width)
        self._chunk, self._next = chunk, (after, decision, [*map(self._least_frame, after.num_tokens)])
        return chunk

    def _rewound(
        self, begun: Sequence[Tensor], ids: Tensor, valid: Sequence[int]
    ) -> tuple[Tensor, list[int], Tensor]:
        """Go back to where the present segments began; `again` gives the tokens since then."""
        assert self.policy.clears_cache
        if self.mamba is not None:
            check_together(begun)
        counts = [count - len(row) for count, row in zip(self.num_tokens, begun, strict=True)]
        self.frames = self.frames.at(counts, [*map(self._least_frame, counts)])
        for state in self.states:
            state.rewind()
        return again(begun, ids, valid)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        """Attention of a layer over all that it may see, ``[B, T, H, D]``.

        Args:
            query: ``[B, H, T, D]``.
            key: ``[B, G, T, D]``, of the chunk's columns alone.
            value: ``[B, G, T, D]``, as well.
            attention: the backbone's.
        """
        qkv = QKV(query, key, value)
        outputs = [heads for state in self.states for heads in state.attend(layer, qkv, attention)]
        return qkv.together(outputs)

    def settled(self, chunk: Chunk) -> bool:
        """Whether a chunk that was begun is a whole interval over a full cache: so are all whole intervals
        after it, and have its shapes."""
        return self.cache.full and chunk.width == self.config.update_interval

    @property
    def complete(self) -> bool:
        """Whether every layer has read the present chunk."""
        return self.cache.complete

    def commit(self, hidden: Tensor | None = None) -> None:
        """Take the chunk in; where an interval is complete, evict and move the frame.

        Args:
            hidden: final states of the chunk's last columns, ``[B, n, d]``, at least of those of its suffix.
        """
        if self._chunk is None or self._next is None:
            raise RuntimeError("no chunk is being read: call begin first")
        if not self.complete:
            raise RuntimeError("a chunk was committed that not every layer has read")
        for state in self.states:
            state.commit(self._chunk, hidden)
        self.frames, decision, least = self._next
        if decision is not None:
            self._decide(decision, least)
        self.end_chunk()

    def rollback(self) -> None:
        """Drop the chunk that was begun: the memory is as it was before."""
        if self._before is not None:
            self.go_back_to(self._before)
        self.end_chunk()

    def go_back_to(self, before: "WorkingMemory") -> None:
        """Become what a copy is that was made before, and that is not used any more."""
        vars(self).update({**vars(before), "listener": self.listener})

    def end_chunk(self) -> None:
        super().end_chunk()
        self._chunk = self._before = self._next = None

    # ---- eviction

    def evict(self) -> None:
        """Evict now, in the middle of an interval: what is cached shrinks to the budget."""
        rows, least = [True] * len(self.num_tokens), [*map(self._least_frame, self.num_tokens)]
        self._decide(self.frames.decision(rows, self.frames.starts(), self.cache.device), least)

    def show_cache(self) -> None:
        """Let whoever asks for it see what is cached."""
        if self.listener is not None:
            self.listener.cached(self.cache, self.num_tokens[0])

    def _decide(self, decision: Decision, least: list[int]) -> None:
        """Evict, and move the frame; ``least`` is where it may put each row's next token at the earliest."""
        self.show_cache()
        self.cache.evict(decision, None if self.listener is None else self.listener.evicted)
        move = decision.move
        if self.config.positions == "compact":
            self.frames, move = self.cache.close_gaps(decision, self.frames, least)
        for state in self.states:
            if move is not None:
                state.move(move)
        if self.mamba is not None and self.policy.clears_cache:
            self.mamba.mark_segment()

    def _least_frame(self, num_tokens: int) -> int:
        """Frame of a row's next token where nothing is cached: without gaps, the prefix comes first."""
        if self.recurrence is None or self.config.positions != "compact":
            return 0
        return -self.recurrence.offsets(num_tokens)[0]

    # ---- whole-memory operations

    @property
    def caches(self) -> list[LayerCache]:
        """The cache of each group of heads."""
        return self.cache.layers

    def copy(self) -> Self:
        """An independent memory with the same content; nobody hears what it evicts."""
        twin = super().copy()
        twin.listener = None
        return twin

    def holding(self, num_tokens: int, layers: Sequence[LayerCache]) -> Self:
        """A copy that holds some of a document's first ``num_tokens`` tokens, as if it had read them all.

        Args:
            layers: the cache of each group of heads, of one row, keys rotated for position 0.

        Raises:
            InputError: something was read before, or segments hand something on that nobody has.
        """
        if self.num_tokens != (0,) or self.recurrence is not None:
            raise InputError(
                "Tokens are put into an empty working memory of one row, without memory embeddings."
            )
        twin, device = self.copy(), torch.device("cpu")
        for layer in layers:
            device = device if layer.positions is None else layer.positions.device
        held = max((layer.tokens for layer in layers), default=0)
        twin.frames, move = self.frames.holding(num_tokens, held, device)
        twin.cache.layers = list(layers)
        twin.cache.move(move)
        return twin

    def select_rows(self, index: Tensor) -> None:
        super().select_rows(index)
        self.frames = self.frames.select_rows(index.tolist())

    # ---- saving, with `state_dict`

    def bookkeeping(self) -> dict[str, Any]:
        """JSON-ready rest of the state."""
        return self.frames.bookkeeping() | {"holes": [cache.ragged for cache in self.caches]}

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
        counts = read_bookkeeping(bookkeeping, len(self.cache.head_groups))
        (num_tokens,), stored = counts["seen"], Stored(tensors)
        marked = self.policy.clears_cache and num_tokens >= self.config.update_interval
        prefix = 0 if self.recurrence is None else self.recurrence.prefix
        row = SavedRow(num_tokens, prefix, dtype, vocabulary, counts["holes"], marked)
        for state in self.states:
            state.load(stored, state.specs(stored, row))
        stored.done()
        self.cache.check(num_tokens, num_tokens + self.trained_range)
        self.frames = self.frames.restored(counts, self.cache.tokens, prefix)


def check_together(begun: Sequence[Tensor]) -> None:
    """Refuse to read segments again with Mamba heads where rows are at different places of them.

    Args:
        begun: each row's token ids since its segment began, ``[n]`` int64.

    Raises:
        InputError: they are.
    """
    if len({len(row) for row in begun}) > 1:
        raise InputError(
            "Rows at different places of their segments cannot be read on with Mamba heads and the query "
            "half: read them one by one."
        )


def check_range(
    config: WorkingMemoryConfig, policy: EvictionPolicy, trained_range: int, budget: int, around: int
) -> None:
    """Refuse settings that do not fit the trained range.

    Args:
        budget: the most tokens that a KV head keeps.
        around: embeddings that are read before and after a segment.

    Raises:
        InputError: they do not.
    """
    interval = config.update_interval
    if config.positions == "distance" and interval > trained_range:
        raise InputError(
            f"{interval} tokens between two evictions exceed the backbone's trained range "
            f"of {trained_range} positions: lower `update_interval`, on the command line --chunk."
        )
    if config.positions != "compact" or not policy.evicts:
        return
    if policy.clears_cache:  # the budget, of which it makes no use, needs no room
        if interval + around > trained_range:
            raise InputError(
                f"Segments of {interval} tokens, with {around} around them, exceed the backbone's "
                f"trained range of {trained_range} positions: lower the segment and update_interval."
            )
    elif interval + budget > trained_range:
        raise InputError(
            f"A budget of {budget} and {interval} tokens between evictions exceed the backbone's trained "
            f"range of {trained_range} positions: lower one of them."
        )
