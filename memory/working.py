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
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.chunk import Chunk, causal_mask, exact_mask
from hiermem.memory.eviction import keep_best, keep_best_where_due
from hiermem.memory.heads import Shares, plan_parts
from hiermem.memory.layer import LayerMemory, LayerShape
from hiermem.memory.policies import (
    POLICIES,
    CacheView,
    EvictionPolicy,
    Namm,
    NammPolicy,
    Observer,
    ShownQueries,
)
from hiermem.memory.positions import POSITION_MODES, frame_start


@dataclass
class WorkingMemoryConfig:
    """Settings of the working memory.

    Attributes:
        policy: name of the eviction policy, one of `hiermem.memory.policies.POLICIES`.
        budget: tokens that each KV head keeps after a decision, in the mean. Between decisions the cache
            grows by up to `update_interval` tokens more.
        sinks: first tokens of a document, never evicted.
        recent_share: share of a head's budget that always goes to the newest tokens.
        head_shares: what each KV head keeps in proportion to the others, layers x KV heads; None: all keep
            the same. They belong to one backbone (`hiermem calibrate` measures them).
        update_interval: tokens read between two decisions.
        positions: `distance` keeps true distances up to the trained range and holds older tokens at its
            far edge; `absolute` counts on for ever (as NAMM was published); `compact` closes the gaps
            (as StreamingLLM does).
        trained_range: positions the backbone was trained on; None asks the backbone's configuration.
    """

    policy: str = "window"
    budget: int = 512
    sinks: int = 4
    recent_share: float = 0.5
    update_interval: int = 512
    positions: str = "distance"
    trained_range: int | None = None
    head_shares: Shares | None = None

    def __post_init__(self) -> None:
        if self.head_shares is not None:
            self.head_shares = [[float(share) for share in row] for row in self.head_shares]  # as JSON has it
            flat = [share for row in self.head_shares for share in row]
            if not flat or not all(0 <= share < float("inf") for share in flat) or not any(flat):
                raise InputError("Head shares must be finite, not negative and not all 0.")
        if self.policy not in POLICIES:
            raise InputError(f"Unknown policy {self.policy!r}: choose one of {', '.join(POLICIES)}.")
        if self.positions not in POSITION_MODES:
            raise InputError(
                f"Unknown position mode {self.positions!r}: choose one of {', '.join(POSITION_MODES)}."
            )
        if self.budget < 1:
            raise InputError(f"The budget must be at least 1 token per KV head, not {self.budget}.")
        if self.update_interval < 1:
            raise InputError(f"Decisions must be at least 1 token apart, not {self.update_interval}.")
        if self.sinks < 0 or not 0.0 <= self.recent_share <= 1.0:
            raise InputError(
                f"The sinks must not be negative and recent_share must lie in 0..1, "
                f"not {self.sinks} and {self.recent_share}."
            )
        if self.sinks + self.recent(self.budget) > self.budget:
            raise InputError(
                f"{self.sinks} sinks and {self.recent(self.budget)} recent tokens exceed the budget of "
                f"{self.budget}: raise the budget."
            )

    def recent(self, budget: int) -> int:
        """Newest tokens that a head with this budget never loses."""
        return int(budget * self.recent_share)

    def new_policy(self, network: Namm | None = None) -> EvictionPolicy:
        """The configured policy with its settings.

        Args:
            network: what `namm` scores with; None takes an untrained one of the published shape.
        """
        own = {"network": network} if network is not None and self.policy == NammPolicy.name else {}
        return POLICIES[self.policy](sinks=self.sinks, **own)


class WorkingMemory:
    """The KV cache of a backbone for a batch of documents.

    One chunk is read as `begin`, then for each part `append` (and, where the policy asks, `observe`),
    then `commit`. Rows of the batch may be at different places of their documents.

    Attributes:
        parts: which heads of which layer share a cache; one part a layer where all keep the same.
        caches: one `LayerMemory` per part.
        seen: tokens read so far, per batch row.
        next_frame: frame position of the next token in `compact` mode, per batch row.
        columns: width of the input read so far, padding included.
    """

    def __init__(
        self,
        config: WorkingMemoryConfig,
        shapes: Sequence[LayerShape],
        trained_range: int,
        batch: int = 1,
        policy: EvictionPolicy | None = None,
    ) -> None:
        if config.positions == "distance" and config.update_interval > trained_range:
            raise InputError(
                f"{config.update_interval} tokens between two evictions exceed the backbone's trained range "
                f"of {trained_range} positions: lower the chunk (update_interval)."
            )
        self.parts = plan_parts(shapes, config.budget, config.head_shares, config.sinks)
        room, most = trained_range - config.update_interval, max(part.budget for part in self.parts)
        if config.positions == "compact" and config.policy != "none" and most > room:
            raise InputError(
                f"A budget of {most} and {config.update_interval} tokens between evictions exceed "
                f"the backbone's trained range of {trained_range} positions: lower one of them."
            )
        self.config = config
        self.shapes = tuple(shapes)
        self.trained_range = trained_range
        self.policy = policy or config.new_policy()
        self.caches = [LayerMemory() for _ in self.parts]
        self._of_layer: list[list[int]] = [[] for _ in self.shapes]
        for index, part in enumerate(self.parts):
            self._of_layer[part.layer].append(index)
        self.seen = [0] * batch
        self.columns = 0
        self.peak_tokens = 0
        self.next_frame = [0] * batch
        self._chunk: Chunk | None = None
        self._shown: ShownQueries | None = None
        self._observer: Observer | None = None
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._pending_state: dict[int, dict[str, Tensor]] = {}
        self._masks: dict[tuple[int, int, bool], Tensor] = {}

    # ---- reading one chunk

    def take_rows(self, batch: int) -> None:
        """Set the number of rows, which is open until something has been read."""
        if len(self.seen) != batch:
            if any(self.seen):
                raise InputError(f"The memory holds {len(self.seen)} rows, the input has {batch}.")
            self.seen, self.next_frame = [0] * batch, [0] * batch

    def room(self, rows: Sequence[bool]) -> int:
        """How many tokens may be read before the next decision is due in one of the chosen rows."""
        interval = self.config.update_interval
        return min(interval - seen % interval for seen, chosen in zip(self.seen, rows, strict=True) if chosen)

    def begin(self, valid: Sequence[int], width: int, device: torch.device) -> Chunk:
        """Start a chunk of ``width`` columns of which each row's first ``valid`` are real tokens."""
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
        self._chunk = Chunk(positions, frames, tuple(valid), padded)
        return self._chunk

    def parts_of(self, layer: int) -> list[int]:
        """Indices of a layer's parts, in the order of its heads."""
        return self._of_layer[layer]

    def append(self, part: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a chunk's keys and values ``[B, G, Q, D]``; returns all that may be seen, ``S`` long."""
        memory = self.caches[part]
        if memory.keys is not None and memory.values is not None:
            keys = torch.cat((memory.keys, keys), dim=2)
            values = torch.cat((memory.values, values), dim=2)
        self._pending[part] = (keys, values)
        return keys, values

    def mask(self, part: int, repeats: int, dtype: torch.dtype, shown: bool = False) -> Tensor | None:
        """Additive attention mask of the current chunk, broadcastable to ``[B, G, R * Q, S]``.

        None where a single query sees everything. Query heads of a KV group are laid out as R * Q rows.

        Args:
            shown: only the rows of the `shown` queries.
        """
        chunk, memory, window = self._current(), self.caches[part], self._window_in_force(part)
        width = chunk.positions.shape[1]
        exact = memory.holes or chunk.padded or window
        if not exact and width == 1:
            return None
        key = (memory.tokens, repeats, shown)
        if not exact and key in self._masks:
            return self._masks[key]
        columns = self.shown.columns if shown else torch.arange(width, device=chunk.positions.device)
        if exact:
            return exact_mask(memory, chunk, columns, window, repeats, dtype)
        self._masks[key] = causal_mask(memory.tokens, chunk, columns, repeats, dtype)
        return self._masks[key]

    @property
    def shown(self) -> ShownQueries:
        """The chunk's queries that the policy looks at.

        They depend on true positions alone, so cutting a text into other chunks shows the same queries. Where
        rows differ, all columns are shown.
        """
        if self._shown is None:
            chunk, period = self._current(), self.policy.period
            columns = torch.arange(chunk.positions.shape[1], device=chunk.positions.device)
            if not chunk.padded and len({seen % period for seen in self.seen}) == 1:
                columns = columns[self.policy.looks_at(columns + self.seen[0])]
            positions = chunk.positions[:, columns]
            counted = (positions >= 0) & self.policy.looks_at(positions)
            width = chunk.positions.shape[1]
            self._shown = ShownQueries(columns, positions, counted, tuple(self.seen), chunk.valid, width)
            self._observer = self.policy.observer(self._shown)
        return self._shown

    def observe(self, part: int, attention: Tensor) -> None:
        """Let the policy see the attention ``[B, G, R, Q', S]`` of the `shown` queries."""
        chunk, memory, shown = self._current(), self.caches[part], self.shown
        assert self._observer is not None
        new = chunk.positions.unsqueeze(1).expand(*attention.shape[:2], -1)
        positions = new if memory.positions is None else torch.cat((memory.positions, new), dim=2)
        span = positions.shape[2] if memory.holes or chunk.padded else shown.width
        self._pending_state[part] = self._observer(memory.state, attention, positions, span)

    @property
    def complete(self) -> bool:
        """Whether every layer has read the current chunk."""
        return len(self._pending) == len(self.parts)

    def commit(self) -> None:
        """Take the chunk in; where an interval is complete, evict and move the frame."""
        chunk = self._current()
        if not self.complete:
            raise RuntimeError("a chunk was committed that not every layer has read")
        self.caches = [self._grown(index, memory, chunk) for index, memory in enumerate(self.caches)]
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

    def _current(self) -> Chunk:
        if self._chunk is None:
            raise RuntimeError("no chunk is being read: call begin first")
        return self._chunk

    def _grown(self, index: int, memory: LayerMemory, chunk: Chunk) -> LayerMemory:
        keys, values = self._pending[index]
        shape = (*keys.shape[:2], chunk.positions.shape[1])
        positions = chunk.positions.unsqueeze(1).expand(shape)
        frames = chunk.frames.to(torch.int32).unsqueeze(1).expand(shape)
        if memory.positions is not None and memory.frames is not None:
            positions = torch.cat((memory.positions, positions), dim=2)
            frames = torch.cat((memory.frames, frames), dim=2)
        state = self._pending_state.get(index, {})
        return LayerMemory(keys, values, positions, frames, state, memory.holes or chunk.padded)

    # ---- masks

    def _window_in_force(self, part: int) -> int | None:
        """The layer's sliding window, or None while every token still lies within it."""
        window, chunk = self._shape(part).window, self._current()
        if window is None or max(self.seen) + chunk.positions.shape[1] <= window:
            return None
        return window

    # ---- decisions

    def _frame_starts(self, seen: Sequence[int]) -> list[int]:
        """True position of frame position 0 in each row; for `compact` the row's own running offset."""
        if self.config.positions == "absolute":
            return [0] * len(seen)
        if self.config.positions == "compact":
            return [count - frame for count, frame in zip(seen, self.next_frame, strict=True)]
        return [frame_start(count, self.config.update_interval, self.trained_range) for count in seen]

    def _decide(self, due: Sequence[bool], frames_before: Sequence[int]) -> None:
        windows = any(shape.window for shape in self.shapes)
        every = range(len(self.parts))
        if self.policy.evicts or windows or any(memory.holes for memory in self.caches):
            self.caches = [self._evicted(part, due) for part in every]
        if self.config.positions == "compact":
            self.next_frame = [
                used if now else frame
                for used, now, frame in zip(self._most_held(), due, self.next_frame, strict=True)
            ]
            self.caches = [self._compacted(part) for part in every]
        elif self._frame_starts(self.seen) != list(frames_before):
            self.caches = [self._reframed(part) for part in every]

    def _shape(self, part: int) -> LayerShape:
        return self.shapes[self.parts[part].layer]

    def _evicted(self, part: int, due: Sequence[bool]) -> LayerMemory:
        memory, window, budget = self.caches[part], self._shape(part).window, self.parts[part].budget
        assert memory.keys is not None and memory.values is not None and memory.positions is not None
        limit = budget if self.policy.evicts else memory.tokens
        limit = limit if window is None else min(limit, max(window - 1, 1))
        even = all(due) and not memory.holes and not self.policy.drops
        if even and memory.tokens <= limit:
            return memory
        seen = torch.tensor(self.seen, device=memory.keys.device).view(-1, 1, 1)
        recent = max(self.config.recent(budget), 1)
        view = CacheView(memory.positions, seen, memory.state, memory.holes, recent)
        scores = self.policy.protected_scores(view)
        if window is not None:
            scores = scores.masked_fill(memory.positions <= seen - window, -torch.inf)
        return keep_best(memory, scores, limit) if even else keep_best_where_due(memory, scores, due, limit)

    def _reframed(self, part: int) -> LayerMemory:
        """Distance mode: turn the keys to the new frame; what lies before it is held at its edge."""
        memory = self.caches[part]
        assert memory.positions is not None
        starts = torch.tensor(self._frame_starts(self.seen), device=memory.positions.device)
        return self._turned(part, (memory.positions - starts.view(-1, 1, 1)).clamp(min=0))

    def _compacted(self, part: int) -> LayerMemory:
        """Compact mode: cached tokens take the positions right before the next query, without gaps."""
        memory = self.caches[part]
        assert memory.positions is not None
        device = memory.positions.device
        end = torch.tensor(self.next_frame, device=device).view(-1, 1, 1)
        frames = (torch.arange(memory.tokens, device=device) + end - memory.tokens).clamp(min=0)
        return self._turned(part, frames.expand_as(memory.positions))

    def _most_held(self) -> list[int]:
        """Most tokens that any KV head holds, per batch row."""
        counts = [
            (memory.positions >= 0).sum(-1).amax(-1)
            if memory.holes and memory.positions is not None
            else torch.full((len(self.seen),), memory.tokens)
            for memory in self.caches
        ]
        return list(torch.stack([count.cpu() for count in counts]).amax(0).tolist())

    def _turned(self, part: int, frames: Tensor) -> LayerMemory:
        memory, rotary = self.caches[part], self._shape(part).rotary
        assert memory.keys is not None and memory.frames is not None
        keys = memory.keys if rotary is None else rotary.turn(memory.keys, frames - memory.frames)
        return replace(memory, keys=keys, frames=frames.to(torch.int32))

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
        """Bytes of all cached tensors, bookkeeping included."""
        return sum(t.numel() * t.element_size() for memory in self.caches for t in memory.tensors().values())

    def copy(self) -> "WorkingMemory":
        """An independent memory with the same content; shares tensors, which are never written in place."""
        twin = copy(self)  # with its parts, which need not be planned again
        twin.caches, twin.seen, twin.next_frame = list(self.caches), list(self.seen), list(self.next_frame)
        twin._pending, twin._pending_state, twin._masks = {}, {}, {}
        twin._chunk = twin._shown = twin._observer = None
        return twin

    def under(self, config: WorkingMemoryConfig, policy: EvictionPolicy) -> "WorkingMemory":
        """The same content under other settings; nothing may have been evicted by head shares yet."""
        assert len(self.parts) == len(self.shapes)
        twin = WorkingMemory(config, self.shapes, self.trained_range, len(self.seen), policy)
        twin.caches = [self.caches[part.layer].of_heads(part.heads) for part in twin.parts]
        twin._take_bookkeeping(self.bookkeeping())
        return twin

    def select_rows(self, index: Tensor) -> None:
        """Reorder, repeat or drop batch rows in place: row i becomes old row ``index[i]`` (int64)."""
        self.caches = [memory.rows(index) if memory.tokens else memory for memory in self.caches]
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
        """All tensors, named ``<part>.<tensor>``; what is not a tensor is in `bookkeeping`."""
        return {
            f"{part}.{name}": tensor
            for part, memory in enumerate(self.caches)
            for name, tensor in memory.tensors().items()
        }

    def bookkeeping(self) -> dict[str, Any]:
        """JSON-ready rest of the state."""
        return {
            "seen": self.seen,
            "columns": self.columns,
            "peak_tokens": self.peak_tokens,
            "next_frame": self.next_frame,
            "holes": [memory.holes for memory in self.caches],
        }

    def load_state(self, tensors: dict[str, Tensor], bookkeeping: dict[str, Any]) -> None:
        """Take the place of a memory that was saved with `state_dict` and `bookkeeping`."""
        by_part: list[dict[str, Tensor]] = [{} for _ in self.parts]
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            by_part[int(part)][rest] = tensor
        self.caches = [
            LayerMemory.from_tensors(named, holes) if named else LayerMemory()
            for named, holes in zip(by_part, bookkeeping["holes"], strict=True)
        ]
        self._take_bookkeeping(bookkeeping)

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
    """
    at, end = 0, max(lengths) if width is None else width
    while at < end:
        active = [length > at for length in lengths]
        take = min(size, end - at, memory.room(active) if any(active) else end)
        yield at, take
        at += take
