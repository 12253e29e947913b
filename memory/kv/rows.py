"""Working memories with recalled tokens, put together as rows of one batch.

Dimension names: B batch, G KV heads, T cached tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from hiermem.memory.cache.frames import Counts
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.tensor_state import named
from hiermem.memory.working import WorkingMemory


def side_by_side(several: Sequence[WorkingMemory]) -> WorkingMemory:
    """One working memory whose rows are those of several, which hold what `recalled` gave and have read
    nothing; they stay as they are."""
    first = several[0]
    assert first.recurrence is None and (first.mamba is None or not first.mamba.states)
    together, frames = first.copy(), [memory.frames for memory in several]
    counts = Counts(
        tuple(tokens for one in frames for tokens in one.num_tokens),
        max(one.counts.columns for one in frames),
        max(one.counts.peak_tokens for one in frames),
    )
    next_frame = tuple(frame for one in frames for frame in one.next_frame)
    together.frames = replace(first.frames, counts=counts, next_frame=next_frame)
    together.cache.layers = [
        _rows(layers) for layers in zip(*(memory.caches for memory in several), strict=True)
    ]
    return together


def _rows(layers: Sequence[LayerCache]) -> LayerCache:
    """One cache with the rows of several; empty slots stand in front of the shorter ones."""
    width = max(layer.tokens for layer in layers)
    rows = [[tensor for _, tensor in named(_widened(layer, width))] for layer in layers]
    joined = iter([torch.cat(parts) for parts in zip(*rows, strict=True)])
    ragged = any(layer.ragged or layer.tokens < width for layer in layers)
    return replace(layers[0].of_tokens(lambda _: next(joined)), ragged=ragged)


def _widened(layer: LayerCache, width: int) -> LayerCache:
    """A cache with empty slots in front, so that it has so many."""
    missing = width - layer.tokens
    wide = layer.of_tokens(lambda t: torch.cat((t.new_zeros(*t.shape[:2], missing, *t.shape[3:]), t), dim=2))
    assert wide.positions is not None
    is_empty = torch.arange(width, device=wide.positions.device) < missing
    return replace(wide, positions=wide.positions.masked_fill(is_empty, -1))
