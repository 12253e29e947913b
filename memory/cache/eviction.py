"""Eviction: which slots of a layer's cache stay, in every row and KV head.

Dimension names: B batch, G KV heads, T cached tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hiermem.memory.cache.layer import LayerCache


def keep_best(memory: LayerCache, scores: Tensor, limit: int) -> LayerCache:
    """The ``limit`` best slots of every head, in order; no slot may be empty.

    Args:
        scores: ``[B, G, T]`` float32.
    """
    kept = _best_first(scores)[..., :limit].sort(dim=-1).values
    return _gathered(memory, kept, empty=None)


def keep_best_where_due(memory: LayerCache, scores: Tensor, due: Sequence[bool], limit: int) -> LayerCache:
    """At most the ``limit`` best slots of every head in the rows that are ``due``; empty slots go in front.

    Rows and heads may end with different numbers of tokens.

    Args:
        scores: ``[B, G, T]`` float32; what has -inf goes even where there is room.
    """
    assert memory.positions is not None
    is_due = torch.tensor(due, device=scores.device).view(-1, 1, 1)
    untouched = torch.zeros_like(scores).masked_fill(memory.positions < 0, -torch.inf)
    scores = torch.where(is_due, scores, untouched)
    alive = scores > -torch.inf
    order = _best_first(scores)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    keep = alive.gather(-1, order) & (~is_due | (rank < limit))
    height = max(int(keep.sum(-1).max()), 1)
    order, keep = order[..., :height], keep[..., :height]
    positions = memory.positions.gather(-1, order).masked_fill(~keep, -1)
    positions, by_position = positions.sort(dim=-1, stable=True)
    return _gathered(memory, order.gather(-1, by_position), empty=positions < 0)


def _best_first(scores: Tensor) -> Tensor:
    """Slots by falling score; of equal ones the newer first, so that a batch decides as its rows alone."""
    newest_first = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    return scores.shape[-1] - 1 - newest_first


def _gathered(memory: LayerCache, kept: Tensor, empty: Tensor | None) -> LayerCache:
    """The slots ``kept [B, G, T'] int64`` of a layer, in new and smaller tensors."""
    B, G, T = kept.shape
    base = torch.arange(B * G, device=kept.device).view(B, G, 1) * memory.tokens
    rows = (base + kept).flatten()

    def pick(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 2).index_select(0, rows).unflatten(0, (B, G, T))

    gathered = {name: pick(tensor) for name, tensor in memory.tensors().items()}
    ragged = False
    if empty is not None:
        gathered["positions"] = gathered["positions"].masked_fill(empty, -1)
        ragged = bool(empty.any())
    return LayerCache.from_tensors(gathered, ragged)
