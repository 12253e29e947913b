"""Attention over a `WorkingMemory`, under a name that transformers' models can be switched to.

The name is set on a model's configuration, which all threads share. So what is registered under it reads over
the memory only in the context that `reading` was entered in; anywhere else it does what the model did before.

A graph that torch.compile traces cannot read the context: there, `traced` says which memory is read.

Dimension names: B batch, Q new queries, H query heads, G KV heads, R = H / G, S visible tokens, D head width.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hiermem.errors import BackboneUnsupportedError
from hiermem.memory.working import WorkingMemory

_reading: ContextVar[WorkingMemory | None] = ContextVar("hiermem_working_memory", default=None)
_names: dict[str, str] = {}


class _Traced:
    """The memory that is read in the graph that is being traced; only one is at a time."""

    memory: WorkingMemory | None = None


traced = _Traced()


@contextmanager
def tracing(memory: WorkingMemory) -> Iterator[None]:
    """Let the graph that is being traced go through ``memory``; nothing where none is."""
    if not torch.compiler.is_compiling():
        yield
        return
    traced.memory = memory
    try:
        yield
    finally:
        traced.memory = None


def present() -> WorkingMemory | None:
    """The memory that attention goes through here; None: the model's own attention is called."""
    return traced.memory if torch.compiler.is_compiling() else _reading.get()


@contextmanager
def reading(memory: WorkingMemory) -> Iterator[None]:
    """Let attention in this context, and in no other thread, go through ``memory``."""
    token = _reading.set(memory)
    try:
        yield
    finally:
        _reading.reset(token)


def is_reading(memory: WorkingMemory) -> bool:
    """Whether attention in this context goes through ``memory``."""
    return present() is memory


def attention_over(before: str) -> str:
    """The name of attention over a memory for a model whose own implementation is ``before``."""
    if before in _names.values():  # a memory is read within the reading of another: a summary
        return before
    if before not in _names:
        name = f"hiermem{len(_names)}"
        AttentionInterface.register(name, partial(_attention, before))
        AttentionMaskInterface.register(name, partial(_mask, before))
        _names[before] = name
    return _names[before]


def _mask(before: str, *args: Any, **kwargs: Any) -> Any:
    """No mask where a memory is read, which makes its own, layer by layer; else the model's own."""
    mask = None if present() is not None else ALL_MASK_ATTENTION_FUNCTIONS.get(before)
    return None if mask is None else mask(*args, **kwargs)


def _own_attention(module: nn.Module, before: str) -> Callable[..., tuple[Tensor, Any]]:
    """The attention that the model would have called without hiermem."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(before, eager)


def _attention(before: str, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """Attention over the memory that is read in this context; where none is, the model's own."""
    memory = present()
    if memory is None:
        return _own_attention(module, before)(module, *args, **kwargs)
    return _attend(memory, module, *args, **kwargs)


def _attend(
    memory: WorkingMemory,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention over ``memory``; the signature after it is that of transformers' AttentionInterface.

    Args:
        query: ``[B, H, Q, D]``; key, value: ``[B, G, Q, D]``, of the new tokens alone.
        attention_mask: ignored, the working memory knows better.
        options: scaling, softcap and dropout are obeyed.
    """
    for unsupported in ("s_aux", "position_bias"):
        if options.get(unsupported) is not None:
            raise BackboneUnsupportedError(
                f"{type(module).__name__} uses {unsupported} in its attention, which hiermem does not support"
            )
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attention = SoftmaxAttention(scaling, options.get("softcap"), options.get("dropout", 0.0))
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return memory.attend(layer, query, key, value, attention), None


@dataclass(frozen=True)
class SoftmaxAttention:
    """Attention as a backbone computes it (`hiermem.memory.attention.Attention`).

    Attributes:
        scaling: what logits are multiplied by.
        softcap: what they are bent to stay below; None: nothing.
        dropout: share of the weights that is left out.
    """

    scaling: float
    softcap: float | None = None
    dropout: float = 0.0

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Outputs of ``query [B, G, R * Q, D]`` over ``keys`` and ``values [B, G, S, D]``."""
        if self.softcap is None:
            return F.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, dropout_p=self.dropout, scale=self.scaling
            )
        weights = self.weights(query, keys, mask)
        return F.dropout(weights, self.dropout, bool(self.dropout)) @ values

    def weights(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Post-softmax attention ``[B, G, R * Q, S]`` in the dtype of the query.

        Args:
            mask: of the last keys; all see what stands before.
        """
        # The fused kernel gives no weights: they are computed for the few queries that a policy observes.
        logits = (query * self.scaling) @ keys.transpose(-1, -2)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if mask is not None:
            logits[..., logits.shape[-1] - mask.shape[-1] :] += mask
        return logits.softmax(dim=-1)
