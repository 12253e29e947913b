"""Keep tokens that later queries attend to: a decaying sum of the attention received from afar.

Close to H2O (arXiv 2306.14048), which adds all attention up without forgetting. Here the sum decays, queries
next to a token do not count (every token is attended to by its neighbours), and only every `stride`-th
query is observed, which costs a fraction of the attention itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.policies.base import (
    AttentionStats,
    CacheStats,
    EvictionPolicy,
    ObservedQueries,
    Observer,
    extend_state,
)


@dataclass(frozen=True)
class AttentionPolicy(EvictionPolicy):
    """Received attention, averaged over the query heads of a group, decaying with every query read.

    Attributes:
        decay: share of the sum that is left after one more query.
        near: queries fewer than this many tokens behind a token do not count for it.
    """

    decay: float = 0.997
    near: int = 32

    name: ClassVar[str] = "attention"
    stride: ClassVar[int] = 8
    """Every `stride`-th query is observed, and counts `stride` times."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay <= 1.0 or self.near < 0:
            raise InputError(
                f"The decay must lie in 0..1 and near must not be negative, not {self.decay}, {self.near}."
            )

    @property
    def period(self) -> int:
        return self.stride

    def observed_mask(self, positions: Tensor) -> Tensor:
        return positions % self.stride == self.stride - 1

    def observer(self, shown: ObservedQueries) -> Observer:
        return _Observer(self, shown)

    def state(self, num_tokens: int) -> dict[str, tuple[int, ...]]:
        return {"received": ()}

    def scores(self, stats: CacheStats) -> Tensor:
        return stats.state["received"]


class _Observer:
    def __init__(self, policy: AttentionPolicy, shown: ObservedQueries) -> None:
        real = torch.tensor(shown.valid, device=shown.columns.device).unsqueeze(1)
        ages = (real - 1 - shown.columns).clamp(min=0)
        self._near, self._queries = policy.near, shown.positions[:, None, :, None]
        self._weights = shown.counted * policy.stride * policy.decay ** ages.float()
        self._faded = policy.decay ** real.unsqueeze(-1).float()

    def __call__(self, parts: Sequence[AttentionStats]) -> list[dict[str, Tensor]]:
        return [{"received": self._received(part)} for part in parts]

    def _received(self, part: AttentionStats) -> Tensor:
        attention, positions = part.attention, part.positions
        B, G, R, Q, T = attention.shape
        faded = extend_state(part.state.get("received"), positions) * self._faded
        if not Q:
            return faded
        first = max(T - part.span - self._near, 0)  # slots are in order: all before are far from every query
        near = self._queries - positions[:, :, None, first:] < self._near  # [B, G, Q, T - first]
        attention[..., first:].masked_fill_(near.unsqueeze(2), 0.0)
        weights = (self._weights / R).to(attention.dtype)[:, None, None, None]
        received = (weights.expand(B, G, 1, R, Q).flatten(3) @ attention.flatten(2, 3)).squeeze(2)
        return faded + received
