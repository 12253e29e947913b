"""Keep nothing: every interval is read by itself, as HMT reads its segments (arXiv 2405.06067)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.memory.policies.base import CacheStats, EvictionPolicy


@dataclass(frozen=True)
class SegmentLocalPolicy(EvictionPolicy):
    """Nothing outlives a decision, neither sinks nor recent tokens."""

    name: ClassVar[str] = "segment_local"
    aliases: ClassVar[tuple[str, ...]] = ("forget",)
    clears_cache: ClassVar[bool] = True

    @property
    def drops(self) -> bool:
        return True

    def scores(self, stats: CacheStats) -> Tensor:
        return torch.full(stats.positions.shape, -torch.inf, device=stats.positions.device)

    def protected_scores(self, stats: CacheStats) -> Tensor:
        return self.scores(stats)
