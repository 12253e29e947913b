"""Keep everything: the bare backbone, and the reference that the other policies are compared with."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.memory.policies.base import CacheStats, EvictionPolicy


@dataclass(frozen=True)
class FullCachePolicy(EvictionPolicy):
    """All tokens are worth the same and none is evicted."""

    name: ClassVar[str] = "full_cache"
    aliases: ClassVar[tuple[str, ...]] = ("none",)
    evicts: ClassVar[bool] = False

    def scores(self, stats: CacheStats) -> Tensor:
        return torch.zeros(stats.positions.shape, device=stats.positions.device)
