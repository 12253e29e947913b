"""Attention over a `WorkingMemory`, under a name that transformers' models can be switched to.

The name is set on a model's configuration, which all threads share. So what is registered under it reads over
the memory only in the context that `reading` was entered in; anywhere else it does what the model did before.

Dimension names: B batch, Q new queries, H query heads, G KV heads, R = H / G, S visible tokens, D head width.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hiermem.errors import BackboneUnsupportedError
from hiermem.memory.cache.head_groups import Heads
from hiermem.memory.working import WorkingMemory

_reading: ContextVar[WorkingMemory | None] = ContextVar("hiermem_working_memory", default=None)
_names: dict[str, str] = {}


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
    return _reading.get() is memory


def attention_over(before: str) -> str:
    """The name of attention over a memory for a model whose own implementation is ``before``."""
    if before in _names.values():
        return before
    if before not in _names:
        name = f"hiermem{len(_names)}"
        AttentionInterface.register(name, partial(_attention, before))
        AttentionMaskInterface.register(name, partial(_mask, before))
        _names[before] = name
    return _names[before]


def _mask(before: str, *args: Any, **kwargs: Any) -> Any:
    """No mask where a memory is read, which makes its own, layer by layer; else the model's own."""
    own = None if _reading.get() is not None else ALL_MASK_ATTENTION_FUNCTIONS.get(before)
    return None if own is None else own(*args, **kwargs)


def _own_attention(module: nn.Module, before: str) -> Callable[..., tuple[Tensor, Any]]:
    """What the model would have called without hiermem."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(before, eager)


def _attention(before: str, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """Attention over the memory that is read in this context; where none is, the model's own."""
    memory = _reading.get()
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
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention over ``memory``; the signature after it is that of transformers' AttentionInterface.

    Args:
        query: ``[B, H, Q, D]``; key, value: ``[B, G, Q, D]``, of the new tokens alone.
        attention_mask: ignored, the working memory knows better.
    """
    for unsupported in ("s_aux", "position_bias"):
        if extra.get(unsupported) is not None:
            raise BackboneUnsupportedError(
                f"{type(module).__name__} uses {unsupported} in its attention, which hiermem does not support"
            )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    B, H, Q, D = query.shape
    G = key.shape[1]
    scaling = D**-0.5 if scaling is None else scaling
    # Query heads of one KV group become rows of one matrix, so keys and values are never repeated.
    grouped = query.reshape(B, G, (H // G) * Q, D)
    attend = partial(_over_cache, scaling=scaling, softcap=softcap, dropout=dropout)
    outputs: list[tuple[Heads, Tensor]] = []
    visible = []
    for part in memory.parts_of(layer):
        heads = memory.parts[part].heads
        keys, values = memory.append(part, key[:, heads], value[:, heads])
        mask = memory.mask(part, H // G, query.dtype)
        outputs.append((heads, attend(grouped[:, heads], keys, values, mask)))
        visible.append(keys)
    if memory.policy.period and visible:
        _show_attention(memory, layer, grouped.unflatten(2, (H // G, Q)), visible, scaling, softcap)
    fading = memory.fading
    if fading is not None and (groups := fading.heads.of_layer(layer)):
        own = memory.fade(layer, query, key, value, attend)
        outputs = fading.placed(outputs, groups, own.reshape(B, len(groups), (H // G) * Q, -1), layer)
    output = _in_place(outputs, G)
    # Whatever layout the kernel left, one copy gives the one that the model expects.
    return output.unflatten(2, (H // G, Q)).permute(0, 3, 1, 2, 4).reshape(B, Q, H, -1), None


def _in_place(outputs: list[tuple[Heads, Tensor]], groups: int) -> Tensor:
    """Outputs of all KV groups, ``[B, G, R * Q, D]``, from those of some at a time, ``[B, g, R * Q, D]``."""
    if len(outputs) == 1:
        return outputs[0][1]
    order = [group for heads, _ in outputs for group in _numbers(heads, groups)]
    together = torch.cat([output for _, output in outputs], dim=1)
    if order == sorted(order):
        return together
    return together[:, [order.index(group) for group in range(groups)]]


def _numbers(heads: Heads, groups: int) -> Sequence[int]:
    return range(groups)[heads] if isinstance(heads, slice) else heads


def _over_cache(
    grouped: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attention of ``grouped [B, G, R * Q, D]`` over ``keys`` and ``values [B, G, S, D]``."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    weights = _weights(grouped, keys, mask, scaling, softcap)
    return F.dropout(weights, dropout, bool(dropout)) @ values


def _weights(
    grouped: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """Post-softmax attention ``[B, G, R * Q, S]`` in the dtype of the query.

    Args:
        mask: of the last keys; all see what stands before.
    """
    logits = (grouped * scaling) @ key.transpose(-1, -2)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is not None:
        logits[..., logits.shape[-1] - mask.shape[-1] :] += mask
    return logits.softmax(dim=-1)


@torch.no_grad()
def _show_attention(
    memory: WorkingMemory,
    layer: int,
    query: Tensor,
    visible: list[Tensor],
    scaling: float,
    softcap: float | None,
) -> None:
    """Show the policy the attention of the queries, of ``query [B, G, R, Q, D]``, that it wants to see.

    Args:
        visible: the keys that each part of the layer sees, ``[B, G, S, D]``.
    """
    R, columns = query.shape[2], memory.shown.columns
    some = query[:, :, :, memory.chunk.tokens].index_select(3, columns).flatten(2, 3)
    attentions = []
    for part, keys in zip(memory.parts_of(layer), visible, strict=True):
        mask = memory.mask(part, R, query.dtype, shown=True)
        weights = _weights(some[:, memory.parts[part].heads], keys, mask, scaling, softcap)
        attentions.append(weights.unflatten(2, (R, len(columns))))
    memory.observe(layer, attentions)
