"""Queries, keys and values of one layer, and the backbone's attention over them.

Dimension names: B batch, H query heads, G KV heads, R = H / G, T columns that the backbone reads, S visible
tokens, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Heads = slice | list[int]
"""Some KV heads of a layer, as an index."""

HeadOutputs = list[tuple[Heads, Tensor]]
"""Outputs of some KV heads at a time, ``[B, g, R * T, D]``."""


class Attention(Protocol):
    """Softmax attention as the backbone computes it, with its scaling, softcap and dropout."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Outputs ``[B, G, Q, D]``.

        Args:
            query: ``[B, G, Q, D]``.
            keys: ``[B, G, S, D]``.
            values: ``[B, G, S, D]``.
            mask: what is added to the logits, broadcastable to ``[B, G, Q, S]``; None: nothing.
        """

    def weights(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Post-softmax attention ``[B, G, Q, S]`` in the dtype of the query.

        Args:
            mask: of the last keys; all see what stands before.
        """


@dataclass(frozen=True)
class QKV:
    """Projections of a chunk's columns in one layer, keys and queries rotated.

    Attributes:
        query: ``[B, H, T, D]``.
        key: ``[B, G, T, D]``.
        value: ``[B, G, T, D]``.
    """

    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def repeats(self) -> int:
        """R."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def grouped(self) -> Tensor:
        """Query heads of one KV group as rows of one matrix, ``[B, G, R * T, D]``: so keys and values are
        never repeated."""
        B, _, T, D = self.query.shape  # query heads g R … g R + R - 1 share KV head g
        return self.query.reshape(B, self.key.shape[1], self.repeats * T, D)

    def together(self, outputs: HeadOutputs) -> Tensor:
        """Outputs of all heads as the model expects them, ``[B, T, H, D]``."""
        B, H, T, _ = self.query.shape
        output = _in_place(outputs, self.key.shape[1])
        # Whatever layout the kernel left, one copy gives the one that the model expects.
        return output.unflatten(2, (self.repeats, T)).permute(0, 3, 1, 2, 4).reshape(B, T, H, -1)


def _in_place(outputs: HeadOutputs, groups: int) -> Tensor:
    """Outputs of all KV groups in order, ``[B, G, R * T, D]``."""
    if len(outputs) == 1:
        return outputs[0][1]
    order = [group for heads, _ in outputs for group in numbers(heads, groups)]
    together = torch.cat([output for _, output in outputs], dim=1)
    if order == sorted(order):
        return together
    return together[:, [order.index(group) for group in range(groups)]]


def numbers(heads: Heads, groups: int) -> Sequence[int]:
    """Numbers of the KV heads that an index means, of a layer's ``groups``."""
    return range(groups)[heads] if isinstance(heads, slice) else heads
