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

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hiermem.errors import InputError
from hiermem.memory.attention import QKV, Attention
from hiermem.memory.cache.frames import Decision, PositionFrames
from hiermem.memory.cache.head_groups import HeadGroup, plan_head_groups
from hiermem.memory.cache.kv_cache import KVCache
from hiermem.memory.cache.layer import LayerCache, LayerGeometry
from hiermem.memory.chunk import Chunk
from hiermem.memory.chunk_state import ChunkState
from hiermem.memory.hmt.segments import Encoder, SegmentRecurrence
from hiermem.memory.mamba.cache import MambaCache
from hiermem.memory.policies import EvictionPolicy
from hiermem.memory.stored import Stored, read_bookkeeping
from hiermem.memory.working_config import WorkingMemoryConfig


class WorkingMemory:
    """The working memory of a backbone for a batch of documents.

    One chunk is read as `begin`, then `attend` for each layer, then `commit`. Rows of the batch may be at
    different places of their documents.

    Args:
        config: its settings.
        geometries: of the backbone's layers.
        trained_range: positions that the backbone was trained on.
        batch: rows.
        policy: what scores cached tokens; None: as configured.
        beside: what is carried beside the cache: a `SegmentRecurrence`, a `MambaCache`, or others.

    Raises:
        InputError: the settings do not fit the backbone.

    Attributes:
        cache: the KV cache.
        recurrence: what segments hand on; None: nothing.
        mamba: states of Mamba heads, in place of the cache of the heads they replace; None: there are none.
        frames: how far the rows have come.
    """

    def __init__(
        self,
        config: WorkingMemoryConfig,
        geometries: Sequence[LayerGeometry],
        trained_range: int,
        batch: int = 1,
        policy: EvictionPolicy | None = None,
        beside: Sequence[ChunkState] = (),
    ) -> None:
        self.config, self.geometries, self.trained_range = config, tuple(geometries), trained_range
        self.policy = policy or config.new_policy()
        self.recurrence = next((own for own in beside if isinstance(own, SegmentRecurrence)), None)
        self.mamba = next((own for own in beside if isinstance(own, MambaCache)), None)
        replaced = () if self.mamba is None else self.mamba.heads.groups
        groups = plan_head_groups(geometries, config.budget, config.head_shares, config.sinks, replaced)
        around = 0 if self.recurrence is None else self.recurrence.prefix + self.recurrence.suffix
        check_range(config, self.policy, trained_range, max(group.budget for group in groups), around)
        self.cache = KVCache(self.geometries, groups, self.policy, config.recent)
        start = (0,) * batch, (self._least_frame(0),) * batch
        self.frames = PositionFrames(config.positions, config.update_interval, trained_range, *start)
        self._end_chunk()

    @property
    def states(self) -> list[ChunkState]:
        """All that is carried."""
        return [own for own in (self.cache, self.recurrence, self.mamba) if own is not None]

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
        """How many tokens may be read until an eviction is due or a segment ends in a chosen row."""
        room = self.frames.room(rows)
        if self.recurrence is None:
            return room
        counts = (count for count, reads in zip(self.num_tokens, rows, strict=True) if reads)
        return min(room, *map(self.recurrence.room, counts))

    def begin(self, ids: Tensor, valid: Sequence[int], encoder: Encoder | None = None) -> Chunk:
        """Start a chunk ``ids [B, Q]`` int64 of which each row's first ``valid`` are real tokens.

        A segment that recalls by its first half, and was begun with less than that, is read again with what
        comes: so the pieces of a text are read as the whole of it up to there. The chunk then has more tokens
        than were asked for; it also has more columns than tokens where a segment begins or ends in it.

        Args:
            encoder: what makes embeddings and summaries, wanted where segments hand something on.
        """
        self._end_chunk()
        width, asked = ids.shape[1], None
        if self.recurrence is not None and self.recurrence.falls_short(valid):
            self._before = self.copy()
            ids, valid, asked = self._rewound(self.recurrence, ids, valid)
        learned = all(own.rotary is None for own in self.geometries)
        chunk = self.frames.chunk(ids, valid, learned)
        if self.recurrence is not None:
            assert encoder is not None
            chunk = self.recurrence.surround(chunk, self.frames, encoder)
        chunk = replace(chunk, asked=asked)
        self._plan(chunk, width)
        for state in self.states:
            state.begin(chunk)
        self._chunk = chunk
        return chunk

    def _plan(self, chunk: Chunk, width: int) -> None:
        """Where the rows will stand after a chunk of the asked ``width``, and whether an eviction is due."""
        before = self.frames.starts()
        self._after = self.frames.after(chunk, width, self.cache.tokens + chunk.width)
        due = self._after.due(chunk.valid)
        if any(due):
            self._decision = self._after.decision(due, before, chunk.ids.device)

    def _rewound(
        self, recurrence: SegmentRecurrence, ids: Tensor, valid: Sequence[int]
    ) -> tuple[Tensor, list[int], Tensor]:
        """Go back to where the present segments began: all tokens since then with the new ones, their number
        in each row, and which columns the new ones are now; those of padding do not matter."""
        begun = recurrence.segment_ids
        assert self.policy.clears_cache
        if self.mamba is not None and len({len(own) for own in begun}) > 1:
            raise InputError(
                "Rows at different places of their segments cannot be read on with Mamba heads and the query "
                "half: read them one by one."
            )
        rows = [torch.cat((own, new[:n])) for own, new, n in zip(begun, ids, valid, strict=True)]
        longer = pad_sequence(rows, batch_first=True)
        first = torch.tensor([len(own) for own in begun]).unsqueeze(1)
        asked = (first + torch.arange(ids.shape[1])).clamp(max=longer.shape[1] - 1)
        counts = [count - len(own) for count, own in zip(self.num_tokens, begun, strict=True)]
        frames = tuple(map(self._least_frame, counts))
        self.frames = replace(self.frames, num_tokens=tuple(counts), next_frame=frames)
        for state in self.states:
            state.rewind()
        return longer, [len(row) for row in rows], asked

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        """Attention of a layer over all that it may see, ``[B, T, H, D]``.

        Args:
            query: ``[B, H, T, D]``; key, value: ``[B, G, T, D]``, of the chunk's columns alone.
            attention: the backbone's.
        """
        qkv = QKV(query, key, value)
        return qkv.together([own for state in self.states for own in state.attend(layer, qkv, attention)])

    @property
    def complete(self) -> bool:
        """Whether every layer has read the present chunk."""
        return self.cache.complete

    def commit(self, hidden: Tensor | None = None) -> None:
        """Take the chunk in; where an interval is complete, evict and move the frame.

        Args:
            hidden: final states of the chunk's last columns, ``[B, n, d]``, at least of those of its suffix.
        """
        if self._chunk is None or self._after is None:
            raise RuntimeError("no chunk is being read: call begin first")
        if not self.complete:
            raise RuntimeError("a chunk was committed that not every layer has read")
        for state in self.states:
            state.commit(self._chunk, hidden)
        self.frames, decision = self._after, self._decision
        self._end_chunk()
        if decision is not None:
            self._decide(decision)

    def rollback(self) -> None:
        """Drop the chunk that was begun: the memory is as it was before."""
        if self._before is not None:
            vars(self).update(vars(self._before))
        self._end_chunk()

    def _end_chunk(self) -> None:
        self._chunk: Chunk | None = None
        self._before: WorkingMemory | None = None
        self._after: PositionFrames | None = None
        self._decision: Decision | None = None
        for state in self.states:
            state.end_chunk()

    # ---- eviction

    def evict(self) -> None:
        """Evict now, in the middle of an interval: what is cached shrinks to the budget."""
        rows, device = [True] * len(self.num_tokens), self.cache.device
        self._decide(self.frames.decision(rows, self.frames.starts(), device))

    def _decide(self, decision: Decision) -> None:
        self.cache.evict(decision)
        move = decision.move
        if self.config.positions == "compact":
            held = self.cache.most_held(len(self.num_tokens))
            before, least = self.frames, [*map(self._least_frame, self.num_tokens)]
            self.frames = before.close_gaps(held, least, decision.rows)
            move = self.frames.closed(before, decision.num_tokens.device)
        if move is not None:
            for state in self.states:
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

    @property
    def head_groups(self) -> tuple[HeadGroup, ...]:
        """Which heads of which layer share a cache; one group a layer where all keep the same."""
        return self.cache.head_groups

    @property
    def live_tokens(self) -> int:
        """Most tokens that any KV head holds now."""
        return self.cache.tokens

    @property
    def mean_tokens(self) -> float:
        """Tokens that a KV head holds now, in the mean over rows, layers and heads, without empty slots."""
        return self.cache.mean_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, bookkeeping included."""
        return sum(state.nbytes for state in self.states)

    def held_everywhere(self, start: int, end: int) -> Tensor:
        """Which tokens of a span of row 0 every head of every layer still holds, ``[end - start]`` bool."""
        return self.cache.held_everywhere(start, end)

    def copy(self) -> "WorkingMemory":
        """An independent memory with the same content; shares tensors, which are never written in place."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.cache = self.cache.copy()
        twin.recurrence = None if self.recurrence is None else self.recurrence.copy()
        twin.mamba = None if self.mamba is None else self.mamba.copy()
        twin._end_chunk()
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "WorkingMemory":
        return self.copy()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self.copy())  # without what belongs to a chunk

    def detach(self) -> None:
        """Cut the gradients: what was read so far is a constant from here."""
        for state in self.states:
            state.detach()

    def select_rows(self, index: Tensor) -> None:
        """Reorder, repeat or drop batch rows in place: row i becomes old row ``index[i]`` (int64)."""
        for state in self.states:
            state.select_rows(index)
        self.frames = self.frames.select_rows(index.tolist())

    # ---- saving

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by their names in files; the rest is in `bookkeeping`."""
        return {name: tensor for state in self.states for name, tensor in state.tensors().items()}

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
        counts = read_bookkeeping(bookkeeping, len(self.head_groups))
        (num_tokens,), (frame,), stored = counts["seen"], counts["next_frame"], Stored(tensors)
        prefix = 0 if self.recurrence is None else self.recurrence.prefix
        cache = self.cache.stored(stored, num_tokens, prefix, dtype, counts["holes"])
        self.cache.load(stored, cache)
        if self.recurrence is not None:
            self.recurrence.load(stored, self.recurrence.stored(num_tokens, dtype))
            self.recurrence.check_ids(vocabulary)
        if self.mamba is not None:
            marked = self.policy.clears_cache and num_tokens >= self.config.update_interval
            self.mamba.load(stored, self.mamba.stored(num_tokens, marked, prefix, dtype))
        stored.done()
        self.cache.check(num_tokens, num_tokens + self.trained_range)
        if not self.live_tokens <= counts["peak_tokens"]:
            raise ValueError("more tokens are cached than ever were")
        if frame > num_tokens + prefix:
            raise ValueError("next_frame leaves its range")
        self.frames = self.frames.restored(counts)


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
            f"of {trained_range} positions: lower the chunk (update_interval)."
        )
    if config.positions != "compact" or config.policy == "none":
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
