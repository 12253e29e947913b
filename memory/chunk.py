"""The tokens that are being read, and the attention masks for them.

Dimension names: B batch, G KV heads, R query heads per KV head, Q new queries, T cached tokens, S = T + Q.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hiermem.memory.layer import LayerMemory


@dataclass(frozen=True)
class Chunk:
    """The tokens that are being read.

    Attributes:
        positions: true positions, ``[B, Q]`` int64, -1 for padding.
        frames: positions the backbone is shown, ``[B, Q]`` int64.
        valid: number of real tokens in each row.
        padded: whether any row has padding.
    """

    positions: Tensor
    frames: Tensor
    valid: tuple[int, ...]
    padded: bool


def _never(dtype: torch.dtype) -> float:
    """What is added to the logits of an unseen key: so low that its weight is 0, so high that logits added
    to it stay finite, and a row that sees nothing with them."""
    return torch.finfo(dtype).min / 2


def causal_mask(cached: int, chunk: Chunk, columns: Tensor, repeats: int, dtype: torch.dtype) -> Tensor:
    """Additive mask ``[R * Q', S]`` where all cached tokens are seen and new ones causally.

    Args:
        columns: the chunk's queries that are wanted, ``[Q']`` int64.
    """
    width, device = chunk.positions.shape[1], chunk.positions.device
    unseen = torch.arange(-cached, width, device=device) > columns.unsqueeze(1)
    return (
        torch.zeros(unseen.shape, dtype=dtype, device=device)
        .masked_fill_(unseen, _never(dtype))
        .repeat(repeats, 1)
    )


def exact_mask(
    memory: LayerMemory,
    chunk: Chunk,
    columns: Tensor,
    window: int | None,
    repeats: int,
    dtype: torch.dtype,
) -> Tensor:
    """Additive mask ``[B, 1 or G, R * Q', S]`` from true positions: padding, holes, sliding windows."""
    new = chunk.positions.unsqueeze(1)  # [B, 1, Q]
    key = new
    if memory.positions is not None:
        key = torch.cat((memory.positions, new.expand(-1, memory.positions.shape[1], -1)), dim=2)
    key, query = key.unsqueeze(2), new[:, :, columns].unsqueeze(3)  # [B, G, 1, S], [B, 1, Q', 1]
    visible = (key >= 0) & (key <= query)
    if window is not None:
        visible &= query - key < window
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, _never(dtype)).repeat(1, 1, repeats, 1)
