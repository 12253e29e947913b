"""Keep what later queries look back at: a fading sum of the attention received from afar.

Close to H2O (arXiv 2306.14048), which adds all attention up without forgetting. Here it fades, queries
next to a token do not count (every token is looked at by its neighbours), and only every `query_stride`-th
query is looked at, which costs a fraction of the attention itself.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.memory.policies.base import CacheView, EvictionPolicy, ShownQueries


@dataclass(frozen=True)
class AttentionPolicy(EvictionPolicy):
    """Received attention, averaged over the query heads of a group, fading with every query read.

    Attributes:
        decay: share of the sum that is left after one more query.
        near: queries fewer than this many tokens behind a token do not count for it.
    """

    decay: float = 0.997
    near: int = 32

    name: ClassVar[str] = "attention"
    query_stride: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay <= 1.0 or self.near < 0:
            raise ValueError(
                f"decay must be above 0 and at most 1 and near not negative, got {self.decay} and {self.near}"
            )

    def new_state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        return {"received": torch.zeros(batch, heads, tokens, device=device)}

    def observe(self, state: dict[str, Tensor], attention: Tensor, shown: ShownQueries) -> dict[str, Tensor]:
        R, T = attention.shape[2], attention.shape[-1]
        fading = shown.weights * self.decay ** shown.ages.float() / R
        # Slots stand in for distances: they differ only where something between was evicted, and what is
        # near to a new query is recent. Only the last `band` slots can be near to any.
        band = min(T, T - int(shown.slots[0]) + self.near) if shown.slots.numel() else 0
        slots = torch.arange(T - band, T, device=attention.device)
        is_near = shown.slots.unsqueeze(1) - slots < self.near  # [Q, band]
        attention = attention.sum(2)
        far = attention[..., : T - band], attention[..., T - band :].masked_fill(is_near, 0.0)
        rows = fading[:, None, None, :]
        received = torch.cat([(rows @ part).squeeze(2) for part in far], dim=-1)
        faded = self.decay ** shown.real.unsqueeze(-1).float()
        return {"received": state["received"] * faded + received}

    def scores(self, view: CacheView) -> Tensor:
        return view.state["received"]
