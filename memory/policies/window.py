"""Sinks and the newest tokens (StreamingLLM, arXiv 2309.17453)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hiermem.memory.policies.base import CacheStats, EvictionPolicy


@dataclass(frozen=True)
class WindowPolicy(EvictionPolicy):
    """Newer is better."""

    name: ClassVar[str] = "window"

    def scores(self, stats: CacheStats) -> Tensor:
        return stats.positions.float()
