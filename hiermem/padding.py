"""Places of texts' tokens in a batch: padding on any side, and several texts packed into a row.

Dimension names: B rows of an input, N its columns, T texts, L tokens of the longest, q columns of a block.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hiermem.errors import InputError


class Block(NamedTuple):
    """Values that were computed of some columns of left-aligned texts.

    Attributes:
        first: the first of the columns.
        values: states or logits, ``[T, q, width]``.
    """

    first: int
    values: Tensor


@dataclass(frozen=True)
class Layout:
    """Places of T texts of up to L tokens in an input ``[B, N]``.

    Attributes:
        shape: B and N.
        lengths: tokens of each text.
        source: place in the flattened input of each text's tokens, ``[T, L]`` int64, in order; what follows a
            text's tokens is padding. None: each row is a text without padding.
        row: text that each place of the input holds a token of, ``[B, N]`` int64.
        column: which of its tokens that is, ``[B, N]`` int64.
        packed: whether rows hold several texts.
    """

    shape: tuple[int, int]
    lengths: list[int]
    source: Tensor | None = None
    row: Tensor | None = None
    column: Tensor | None = None
    packed: bool = False

    @property
    def is_one_text(self) -> bool:
        """Whether the input is one text, without padding."""
        return self.source is None and self.shape[0] == 1

    def aligned(self, input_ids: Tensor) -> Tensor:
        """The texts ``[T, L]``, each from column 0 on."""
        return input_ids if self.source is None else input_ids.flatten()[self.source.to(input_ids.device)]

    def places(self, keep: int) -> tuple[Tensor, Tensor]:
        """Text and token of the last ``keep`` columns of the input, or of all, ``[B, keep or N]`` each."""
        B, N = self.shape
        if self.row is None or self.column is None:
            return torch.arange(B).view(-1, 1).expand(B, N)[:, -keep:], torch.arange(N).expand(B, N)[
                :, -keep:
            ]
        return self.row[:, -keep:], self.column[:, -keep:]

    def take(self, blocks: Iterable[Block], places: tuple[Tensor, Tensor]) -> Tensor:
        """Values at these places, ``[B, keep or N, width]``, from blocks that follow one another."""
        first, *others = blocks
        values = torch.cat((first.values, *(block.values for block in others)), 1) if others else first.values
        if self.source is None:
            return values
        row, column = (index.to(values.device) for index in places)
        return values[row, column - first.first]


def layout_of(
    input_ids: Tensor, mask: Tensor | None, positions: Tensor | None, num_tokens: Sequence[int] | None
) -> Layout:
    """The layout of the texts in ``input_ids [B, N]``.

    Args:
        mask: ``[B, N]`` or longer, of which the last N columns count; 0 marks padding.
        positions: of each token in its text, ``[N]`` or ``[B, N]``; None: each row is one text.
        num_tokens: of each row, read before; None: none.

    Raises:
        InputError: positions neither count on from what was read nor, in several texts in a row, from 0.
    """
    B, N = input_ids.shape
    real = torch.ones(B, N, dtype=torch.bool) if mask is None else mask[:, -N:].bool().cpu()
    if positions is not None:
        if positions.shape[-1] != N or positions.ndim > 2 or positions.shape[0] not in (1, B, N):
            raise InputError(f"position_ids must be of shape [{B}, {N}], not {list(positions.shape)}.")
        positions = positions.cpu().expand(B, N)
        before = torch.tensor(num_tokens or [0] * B).view(-1, 1)
        if not torch.equal(positions[real], (before + real.cumsum(1) - 1)[real]):
            return _packed(real, positions, fresh=not any(num_tokens or []))
    lengths = real.sum(1).tolist()
    if all(length == N for length in lengths):
        return Layout((B, N), lengths)
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
    rows = torch.arange(B).view(-1, 1).expand(B, N)
    return Layout((B, N), lengths, order + rows * N, rows, order.argsort(dim=1))


def _packed(real: Tensor, positions: Tensor, fresh: bool) -> Layout:
    """The layout of several texts in a row, each beginning at position 0."""
    (B, N), places = real.shape, real.flatten().nonzero().squeeze(1)
    starts = (positions == 0) | (real.cumsum(1) == 1)
    starts = starts.flatten()[places]
    text, count = starts.cumsum(0) - 1, torch.arange(len(places))
    token = count - count[starts][text]
    if not fresh or not torch.equal(positions.flatten()[places], token):
        raise InputError(
            "position_ids must count on from what was read, or from 0 in each of several texts in a row: "
            "leave them out, or number the tokens so."
        )
    lengths = text.bincount().tolist()
    source = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    source[text, token] = places
    row, column = torch.zeros(2, B * N, dtype=torch.int64)
    row[places], column[places] = text, token
    return Layout((B, N), lengths, source, row.view(B, N), column.view(B, N), packed=True)
