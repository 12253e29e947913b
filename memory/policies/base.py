"""What an eviction policy is: a few settings and one function from a view of the cache to scores.

Dimension names: B batch, G KV heads, R query heads per KV head, Q new queries, T cached tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.errors import InputError


@dataclass(frozen=True)
class CacheView:
    """What a policy may look at when it scores one layer's cache.

    Attributes:
        positions: true position of every cached token, ``[B, G, T]`` int64, ascending, -1 where empty.
        seen: number of tokens read so far in each row, ``[B, 1, 1]`` int64.
        state: the policy's own per-token tensors, ``[B, G, T, …]``, moved along with the survivors.
    """

    positions: Tensor
    seen: Tensor
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class ShownQueries:
    """Which of a chunk's queries a policy is shown.

    Attributes:
        columns: their columns in the chunk, ``[Q]`` int64.
        positions: their true positions, ``[B, Q]`` int64, -1 for padding.
        weights: how many queries each stands for, ``[B, Q]`` float32; 0 does not count, as for padding.
        ages: tokens of the same row read after it in this chunk, ``[B, Q]`` int64.
        real: tokens of each row in this chunk, ``[B, 1]`` int64.
        span: how many last slots of the cache the chunk takes up; all of them where slots may be empty.
    """

    columns: Tensor
    positions: Tensor
    weights: Tensor
    ages: Tensor
    real: Tensor
    span: int


@dataclass(frozen=True)
class EvictionPolicy(ABC):
    """Scores cached tokens; the working memory keeps the best ones within its budget.

    A subclass is one file: its fields are its settings. Protection of sinks and of recent tokens is done
    here, for all policies alike.

    Attributes:
        sinks: first tokens of the document that are never evicted (StreamingLLM, arXiv 2309.17453).
        recent: newest tokens that are never evicted.
    """

    sinks: int = 4
    recent: int = 0

    name: ClassVar[str]
    evicts: ClassVar[bool] = True
    query_stride: ClassVar[int] = 0
    """Every how many queries the attention is shown to `observe`; 0 if the policy does not look at it."""

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.recent < 0:
            raise InputError(
                f"Sinks and recent tokens must not be negative, not {self.sinks} and {self.recent}."
            )

    @abstractmethod
    def scores(self, view: CacheView) -> Tensor:
        """Value of every cached token, ``[B, G, T]`` float32; higher stays longer."""

    def new_state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Per-token state of tokens that have just entered the cache; none by default."""
        return {}

    def observe(
        self, state: dict[str, Tensor], attention: Tensor, positions: Tensor, shown: ShownQueries
    ) -> dict[str, Tensor]:
        """Take note of the attention that cached tokens received from a chunk of new queries.

        Args:
            state: the per-token state, each ``[B, G, T, …]``, new tokens included.
            attention: post-softmax attention of the shown queries, ``[B, G, R, Q, T]`` in the backbone's
                dtype; Q may be 0. It is the policy's to write into.
            positions: true positions of the cached tokens, ``[B, G, T]`` int64, -1 where empty.
            shown: which queries these are.

        Returns the new state.
        """
        return state

    def protected_scores(self, view: CacheView) -> Tensor:
        """`scores` with sinks and recent tokens at +inf and empty slots at -inf, ``[B, G, T]`` float32."""
        positions = view.positions
        protected = (positions < self.sinks) | (positions >= view.seen - self.recent)
        scores = self.scores(view).masked_fill(protected, torch.inf)
        return scores.masked_fill(positions < 0, -torch.inf)
