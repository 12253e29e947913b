"""A `WorkingMemory` as a cache of transformers, and what this version of transformers calls a cache."""

from dataclasses import fields
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from hiermem.errors import BackboneUnsupportedError
from hiermem.memory.working import WorkingMemory

CACHE_NAMES = ("cache", "past_key_values")
"""Names that models call a cache by: the first from transformers 5.24 on, the second before."""

_FIELDS = {field.name for field in fields(CausalLMOutputWithPast)}
CACHE_NAME = next(name for name in CACHE_NAMES if name in _FIELDS)
"""The one of the two that this version's `generate` passes and finds in outputs."""


def cache_argument(model: nn.Module) -> str:
    """The name by which the model's own code takes a cache."""
    parameters = signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), CACHE_NAME)


class _CacheLayer(CacheLayerMixin):
    """One layer of the working memory in the shape that transformers' models expect.

    It knows the memory and not the cache that it is part of: in a cycle of references what was read, with its
    gradients, would stay until Python looks for such cycles.

    Args:
        memory: None for a single chunk, whose masks and positions the memory makes itself: so nothing that a
            model computes depends on how much was read before.
    """

    def __init__(self, memory: WorkingMemory | None = None) -> None:
        super().__init__()
        self._memory, self.updates = memory, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.updates += 1
        return key_states, value_states  # `WorkingMemory.attend` takes them

    def get_seq_length(self) -> int:
        return 0 if self._memory is None else self._memory.frames.counts.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class ChunkCache(Cache):
    """The cache of a model while a chunk goes through it."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_CacheLayer() for _ in range(layers)])

    @property
    def updates(self) -> int:
        """Number of times that layers have given keys and values to the cache."""
        return sum(layer.updates for layer in self.layers if isinstance(layer, _CacheLayer))


class BackboneCache(Cache):
    """A `WorkingMemory` as a transformers cache, for `generate`, beam search and the models themselves.

    Attributes:
        memory: the working memory behind it.
    """

    def __init__(self, memory: WorkingMemory) -> None:
        self.memory = memory
        super().__init__(layers=[_CacheLayer(memory) for _ in memory.geometries])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.memory.select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(len(self.memory.num_tokens))
        self.memory.select_rows(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.memory.select_rows(indices)

    def crop(self, *_: Any, **__: Any) -> None:
        raise BackboneUnsupportedError(
            "A working memory cannot take tokens back once they may have been evicted: "
            "use a generation mode without roll-back (greedy, sampling or beam search)."
        )
