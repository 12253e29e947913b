"""Keep what later queries look back at: a fading sum of the attention received from afar.

Close to H2O (arXiv 2306.14048), which adds all attention up without forgetting. Here it fades, queries
next to a token do not count (every token is looked at by its neighbours), and only every `query_stride`-th
query is looked at, which costs a fraction of the attention itself.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.errors import InputError
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
    query_stride: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay <= 1.0 or self.near < 0:
            raise InputError(
                f"The decay must lie in 0..1 and near must not be negative, not {self.decay}, {self.near}."
            )

    def new_state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        return {"received": torch.zeros(batch, heads, tokens, device=device)}

    def observe(
        self, state: dict[str, Tensor], attention: Tensor, positions: Tensor, shown: ShownQueries
    ) -> dict[str, Tensor]:
        B, G, R, Q, T = attention.shape
        first = max(T - shown.span - self.near, 0)  # slots are in order: all before are far from every query
        distance = shown.positions[:, None, :, None] - positions[:, :, None, first:]  # [B, G, Q, T - first]
        attention[..., first:].masked_fill_((distance < self.near).unsqueeze(2), 0.0)
        fading = shown.weights * self.decay ** shown.ages.float() / R
        fading = fading.to(attention.dtype)[:, None, None, None].expand(B, G, 1, R, Q).flatten(3)
        received = (fading @ attention.flatten(2, 3)).squeeze(2)
        faded = self.decay ** shown.real.unsqueeze(-1).float()
        return {"received": state["received"] * faded + received}

    def scores(self, view: CacheView) -> Tensor:
        return view.state["received"]
