"""The tokens that are being read, and what is read around them.

Dimension names: B batch, Q new tokens, P embeddings of a prefix, d backbone width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """The tokens that are being read, and what is read around them.

    `num_tokens` changes from chunk to chunk: what is computed of tensors takes it from `positions`, so that
    a compiled step serves all chunks of a document.

    Attributes:
        ids: the tokens, ``[B, Q]`` int64.
        positions: their true positions, ``[B, Q]`` int64, -1 for padding.
        position_ids: positions the backbone is shown, ``[B, prefix + Q + suffix]`` int64.
        valid: number of real tokens in each row.
        num_tokens: tokens that each row had read before.
        padded: whether any row has padding.
        prefix: number of embeddings before the tokens; not 0 where a segment begins in some row.
        suffix: number of embeddings after the tokens; not 0 where a segment ends in some row.
        starting: in which rows a segment begins.
        ending: in which rows a segment ends.
        embeddings: inputs of the backbone, ``[B, prefix + Q + suffix, d]``; None: the tokens alone.
        prefix_mask: which columns before each row's present segment may be seen, ``[B, P]`` bool; None: all.
        requested: columns of the tokens that were asked for, ``[B, n]`` int64, where others are read again
            before them; None: all are asked for.
    """

    ids: Tensor
    positions: Tensor
    position_ids: Tensor
    valid: tuple[int, ...]
    num_tokens: tuple[int, ...]
    padded: bool
    prefix: int = 0
    suffix: int = 0
    starting: tuple[bool, ...] = ()
    ending: tuple[bool, ...] = ()
    embeddings: Tensor | None = None
    prefix_mask: Tensor | None = None
    requested: Tensor | None = None

    @property
    def width(self) -> int:
        """Q."""
        return self.positions.shape[1]

    @property
    def around(self) -> bool:
        """Whether anything is read around the tokens."""
        return bool(self.prefix or self.suffix)

    @property
    def tokens(self) -> slice:
        """Columns of the tokens, among those that the backbone reads."""
        return slice(self.prefix, self.prefix + self.width)

    def needed(self, last: int) -> int:
        """Number of last tokens that must be computed to have the ``last`` that were asked for."""
        if self.requested is None or not last:
            return last
        return self.width - int(self.requested[:, -last:].min())

    def answer(self, values: Tensor, last: int = 0) -> Tensor:
        """Of ``values [B, n, width]`` of the last n tokens, the ``last`` that were asked for; 0: all."""
        if self.requested is None:
            return values
        index = self.requested[:, -last:] - (self.width - values.shape[1])
        index = index.to(values.device).unsqueeze(-1)
        return values.gather(1, index.expand(-1, -1, values.shape[-1]))


def in_order(tensor: Tensor, order: Tensor) -> Tensor:
    """Columns of ``tensor [B, …, T, ·]`` by their numbers in each row, ``order [B, T'] int64``."""
    index = order.view(len(order), *[1] * (tensor.ndim - 3), -1, 1)
    return tensor.gather(-2, index.expand(*tensor.shape[:-2], -1, tensor.shape[-1]))


def real_first(real: Tensor) -> Tensor:
    """Numbers of columns, those that count before the others, else as they stand, from ``[B, T]`` bool."""
    return real.to(torch.int8).argsort(dim=1, descending=True, stable=True)
