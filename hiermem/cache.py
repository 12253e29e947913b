"""A `WorkingMemory` as a cache of transformers, and what this version of transformers calls a cache."""

from dataclasses import dataclass, fields
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


@dataclass
class _Held:
    """Content of a cache.

    Attributes:
        memory: the working memory.
        unread: tokens that it is yet to read, ``[B, n]`` int64; None: none.
    """

    memory: WorkingMemory
    unread: Tensor | None = None

    @property
    def columns(self) -> int:
        """Columns that were read, and that are to be."""
        unread = 0 if self.unread is None else self.unread.shape[1]
        return self.memory.frames.counts.columns + unread


@dataclass(frozen=True)
class LastInput:
    """The last input, whose end may be taken back.

    Attributes:
        before: the memory as it was before.
        ids: what was read then, ``[1, n]`` int64.
    """

    before: WorkingMemory
    ids: Tensor


class _CacheLayer(CacheLayerMixin):
    """One layer of the working memory in the shape that transformers' models expect.

    It knows what is held and not the cache that it is part of: in a cycle of references what was read, with
    its gradients, would stay until Python looks for such cycles.

    Args:
        held: None for a single chunk, whose masks and positions the memory makes itself: so nothing that a
            model computes depends on how much was read before.
    """

    def __init__(self, held: _Held | None = None) -> None:
        super().__init__()
        self._held, self.updates = held, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.updates += 1
        return key_states, value_states  # `WorkingMemory.attend` takes them

    def get_seq_length(self) -> int:
        return 0 if self._held is None else self._held.columns

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

    Args:
        memory: the working memory behind it.

    Attributes:
        recording: whether the end of what is read next can be taken back (`crop`). It costs a copy of what a
            pass changes.
    """

    def __init__(self, memory: WorkingMemory) -> None:
        self._held, self.recording = _Held(memory), False
        self._last: LastInput | None = None
        super().__init__(layers=[_CacheLayer(self._held) for _ in memory.geometries])

    @property
    def memory(self) -> WorkingMemory:
        """The working memory behind it; after `crop`, without what stays of the last input."""
        return self._held.memory

    @property
    def is_croppable(self) -> bool:
        return len(self.memory.num_tokens) == 1

    def activate_past_recording(self) -> None:
        self.recording = True

    def stop_recording(self) -> None:
        """Take nothing back any more."""
        self.recording, self._last = False, None

    @property
    def unread(self) -> Tensor | None:
        """Tokens ``[B, n]`` int64 that the memory is to read before anything else; None: none."""
        return self._held.unread

    def move_on(self) -> None:
        """Leave behind what was unread, which now is read, and what could be taken back."""
        self._held.unread = self._last = None

    def note(self, last: LastInput) -> None:
        """Take note of what is read next, whose end can then be taken back."""
        self._last = last

    def crop(self, tokens: int, *_: Any, **__: Any) -> None:
        """Take back the last tokens of the last input: the memory goes back to before all of it, whatever
        was evicted since, and what stays of it is read with the next input.

        Args:
            tokens: how many, below 0; or above 0 how many stay of all that was read, as transformers up to
                5.22 asks.

        Raises:
            BackboneUnsupportedError: they are not of the last input, or that was not recorded.
        """
        removed = -tokens if tokens <= 0 else self._held.columns - tokens
        if removed <= 0:
            return
        if self._last is None or removed > self._last.ids.shape[1]:
            raise BackboneUnsupportedError(
                "A working memory cannot take tokens back once they may have been evicted: use a generation "
                "mode without roll-back (greedy, sampling or beam search), or prompt_lookup_num_tokens."
            )
        self.memory.go_back_to(self._last.before)
        self._held.unread, self._last = self._last.ids[:, :-removed], None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(len(self.memory.num_tokens)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        self.memory.select_rows(rows)
        if (unread := self._held.unread) is not None:
            self._held.unread = unread[rows.to(unread.device)]
        self._last = None
