"""Eviction policy: a few settings and one function from statistics of the cache to scores.

Dimension names: B batch, G KV heads, R query heads per KV head, Q shown queries, T cached tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.attention import Heads
from hiermem.memory.cache.rope import Rotary
from hiermem.settings import check_settings


@dataclass(frozen=True)
class CacheStats:
    """Cached tokens of one layer as a policy sees them when it scores them.

    Attributes:
        positions: true position of every cached token, ``[B, G, T]`` int64, ascending, -1 where empty.
        num_tokens: tokens read so far in each row, ``[B, 1, 1]`` int64.
        state: the policy's own per-token tensors, ``[B, G, T, …]``, moved along with the survivors.
        ragged: whether any slot may be empty.
        recent: newest tokens that are never evicted.
        keys: of the cached tokens, ``[B, G, T, D]`` in the backbone's dtype, rotated to their frames; None
            where a caller has none.
        values: of the cached tokens, ``[B, G, T, D']``; None where a caller has none.
        queries: the last n = `EvictionPolicy.num_queries` queries of each row, oldest first, 0 before the
            first, ``[B, G, R, n, D]``, rotated as the keys; None where the policy wants none.
        position_ids: frame positions that the keys are rotated at, ``[B, G, T]`` int32; None where a caller
            has none.
        rotary: how they are rotated; None where positions are not rotary.
        layer: index of the attention layer.
        heads: which of its KV heads these are.
    """

    positions: Tensor
    num_tokens: Tensor
    state: Mapping[str, Tensor]
    ragged: bool = False
    recent: int = 0
    keys: Tensor | None = None
    values: Tensor | None = None
    queries: Tensor | None = None
    position_ids: Tensor | None = None
    rotary: Rotary | None = None
    layer: int = 0
    heads: Heads = field(default_factory=lambda: slice(None))


@dataclass(frozen=True)
class ObservedQueries:
    """Queries of a chunk that a policy is shown.

    Attributes:
        columns: their columns in the chunk, ``[Q]`` int64.
        positions: their true positions, ``[B, Q]`` int64, -1 for padding.
        counted: whether the policy observes the query in this row, ``[B, Q]`` bool. Where rows differ, all
            columns are shown.
        starts: true position of the chunk's first token in each row.
        valid: real tokens of each row in the chunk.
        width: columns of the chunk.
        on_cpu: the columns, on the CPU; None: where they are.
    """

    columns: Tensor
    positions: Tensor
    counted: Tensor
    starts: tuple[int, ...]
    valid: tuple[int, ...]
    width: int
    on_cpu: Tensor | None = None


@dataclass(frozen=True)
class AttentionStats:
    """Attention that the cached tokens of a head group receive from one chunk's queries.

    Attributes:
        state: the part's per-token state before the chunk, of the tokens that were cached then; empty in a
            new document.
        attention: post-softmax attention of the shown queries, ``[B, G, R, Q, T]`` in the backbone's dtype; Q
            may be 0. It is the observer's to write into.
        positions: true positions of the cached tokens, ``[B, G, T]`` int64, -1 where empty.
        span: how many last slots the chunk takes up; all of them where slots may be empty.
    """

    state: Mapping[str, Tensor]
    attention: Tensor
    positions: Tensor
    span: int


class Observer(Protocol):
    """Takes note, layer by layer, of the attention that cached tokens receive from one chunk's queries."""

    def __call__(self, parts: Sequence[AttentionStats]) -> list[dict[str, Tensor]]:
        """The per-token states of all parts of a layer after the chunk, each ``[B, G, T, …]``."""


@dataclass(frozen=True)
class EvictionPolicy(ABC):
    """Scores cached tokens; the working memory keeps the best ones within its budget.

    A subclass is one file, and one line in `hiermem.memory.policies`: its fields are its settings. Protection
    of sinks and of recent tokens is done here, for all policies alike.

    Attributes:
        sinks: first tokens of the document that are never evicted (StreamingLLM, arXiv 2309.17453).
    """

    sinks: int = 4

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    supplied: ClassVar[frozenset[str]] = frozenset({"sinks"})
    """Fields that are no settings by name: the working memory fills them."""
    evicts: ClassVar[bool] = True
    clears_cache: ClassVar[bool] = False
    """Whether nothing outlives a decision."""
    num_queries: ClassVar[int] = 0
    """How many last queries `CacheStats.queries` holds when tokens are scored; 0: none are kept."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.sinks < 0:
            raise InputError(f"Sinks must not be negative, not {self.sinks}.")

    @abstractmethod
    def scores(self, stats: CacheStats) -> Tensor:
        """Value of each cached token, ``[B, G, T]`` float32; higher stays longer, -inf goes if it `drops`."""

    @property
    def drops(self) -> bool:
        """Whether it may evict more than the budget asks for."""
        return False

    def state(self, num_tokens: int) -> dict[str, tuple[int, ...]]:
        """Shape of what it keeps of each token after ``num_tokens`` tokens, by name; all float32."""
        return {}

    @property
    def period(self) -> int:
        """After how many queries the pattern of those it observes repeats; 0 if it observes none."""
        return 0

    def observed_mask(self, positions: Tensor) -> Tensor:
        """Which queries it wants to see, by their true positions (int64, 0 or more)."""
        return torch.zeros_like(positions, dtype=torch.bool)

    def observer(self, shown: ObservedQueries) -> Observer:
        """An observer of one chunk; asked for once a chunk where the policy has a period."""
        raise NotImplementedError

    def every_score(self, stats: CacheStats) -> Tensor:
        """`scores` as float32, ``[B, G, T]``.

        Raises:
            InputError: there is not a score for every cached token.
        """
        positions, scores = stats.positions, self.scores(stats)
        if not isinstance(scores, Tensor) or scores.shape != positions.shape:
            raise InputError(
                f"The policy {self.name} must score every cached token, a tensor of the shape "
                f"{list(positions.shape)}: mend its scores()."
            )
        return scores.float()

    def protected_scores(self, stats: CacheStats) -> Tensor:
        """`scores` with sinks and recent tokens at +inf and empty slots at -inf, ``[B, G, T]`` float32.

        Raises:
            InputError: there is not a score for every cached token.
        """
        positions, scores = stats.positions, self.every_score(stats)
        if not self.drops:  # what goes at once would leave rows of a batch unlike each row alone
            scores = scores.clamp(min=torch.finfo(scores.dtype).min)
        protected = (positions < self.sinks) | (positions >= stats.num_tokens - stats.recent)
        return scores.masked_fill(protected, torch.inf).masked_fill(positions < 0, -torch.inf)


def extend_state(state: Tensor | None, positions: Tensor, *width: int) -> Tensor:
    """A per-token state ``[B, G, T, …]`` with zeros for the tokens that have come since.

    Args:
        state: of the tokens before; None in a new document.
        positions: true positions of all tokens, ``[B, G, T]``.
        width: shape of a token's state in a new document.
    """
    if state is None:
        return torch.zeros(*positions.shape, *width, device=positions.device)
    new = positions.shape[2] - state.shape[2]
    fresh = state.new_zeros(*state.shape[:2], new, *state.shape[3:])
    return torch.cat((state, fresh), dim=2)
