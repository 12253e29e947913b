"""Keep nothing: every interval is read by itself, as HMT reads its segments (arXiv 2405.06067)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.memory.policies.base import CacheView, EvictionPolicy


@dataclass(frozen=True)
class ForgetPolicy(EvictionPolicy):
    """Nothing outlives a decision, neither sinks nor recent tokens."""

    name: ClassVar[str] = "forget"
    forgets: ClassVar[bool] = True

    @property
    def drops(self) -> bool:
        return True

    def scores(self, view: CacheView) -> Tensor:
        return torch.full(view.positions.shape, -torch.inf, device=view.positions.device)

    def protected_scores(self, view: CacheView) -> Tensor:
        return self.scores(view)
