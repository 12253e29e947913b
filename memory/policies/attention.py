"""Keep what later queries look back at: a fading sum of the attention received from afar.

Close to H2O (arXiv 2306.14048), which adds all attention up without forgetting. Here it fades, queries
next to a token do not count (every token is looked at by its neighbours), and only every `query_stride`-th
query is looked at, which costs a fraction of the attention itself.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.memory.policies.base import CacheView, EvictionPolicy


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

    def observe(
        self, state: dict[str, Tensor], attention: Tensor, weights: Tensor, queries: int
    ) -> dict[str, Tensor]:
        R, T = attention.shape[2], attention.shape[-1]
        age = torch.arange(attention.shape[3] - 1, -1, -1, device=attention.device) * self.query_stride
        fading = weights * self.decay ** age.float() / R  # [B, Q]
        fading = fading[:, None, :, None]
        # Columns that some shown query is near to; slots stand in for positions, which differ from them only
        # where something between was evicted, and recent tokens are not.
        band = min(queries + self.near, T)
        distance = torch.arange(band - 1, -1, -1, device=attention.device) - age.unsqueeze(1)  # [Q, band]
        far = attention[..., : T - band].sum(2), attention[..., T - band :].sum(2)
        far_band = far[1].masked_fill(distance < self.near, 0.0)
        received = torch.cat(((far[0] * fading).sum(2), (far_band * fading).sum(2)), dim=-1)
        return {"received": state["received"] * self.decay**queries + received}

    def scores(self, view: CacheView) -> Tensor:
        return view.state["received"]
