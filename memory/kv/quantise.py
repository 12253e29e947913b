"""Keys and values in few bits: whole numbers under one scale for each token and head.

Dimension names: H heads, K tokens of each, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hiermem.memory.stored import Stored

_STEPS = {"int8": 127, "int4": 7}
"""Whole numbers of a format reach from minus to plus so many."""

_STORED = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": torch.uint8,
}

FORMATS = tuple(_STORED)
"""Names of what keys and values may be kept in."""

EXACT = "float32"
"""Holds what any backbone reads."""

SCALE = torch.bfloat16  # as wide a range as float32 has, in half the bytes


@dataclass(frozen=True)
class Packed:
    """Keys or values in a format of `FORMATS`.

    Attributes:
        numbers: ``[H, K, D]``; in int4 two numbers a byte, those of the width's first half in the low bits,
            ``[H, K, D / 2]`` uint8.
        scale: what whole numbers are multiplied by, ``[H, K]`` bfloat16; None: they are no whole numbers.
    """

    numbers: Tensor
    scale: Tensor | None = None

    @classmethod
    def of(cls, states: Tensor, dtype: str) -> "Packed":
        """Pack ``states [H, K, D]``; each number is off by at most the scale of its token, the largest one
        divided by 127 in int8 and by 7 in int4."""
        if (most := _STEPS.get(dtype)) is None:
            return cls(states.to(_STORED[dtype]))
        states = states.float()
        scale = (states.abs().amax(-1) / most).to(SCALE)
        step = scale.float().masked_fill(scale == 0, 1.0).unsqueeze(-1)
        whole = (states / step).round().clamp(-most, most).to(torch.int8)
        if dtype == "int8":
            return cls(whole, scale)
        low, high = (whole + 8).to(torch.uint8).chunk(2, dim=-1)
        return cls(low | high << 4, scale)

    @classmethod
    def read(cls, stored: Stored, heads: int, tokens: int, dtype: str) -> "Packed":
        """The same from a file.

        Raises:
            ValueError: something is missing or of another kind.
        """
        numbers = stored.take("numbers", _STORED[dtype], heads, tokens, None)
        return cls(numbers, stored.take("scale", SCALE, heads, tokens) if dtype in _STEPS else None)

    def on_the_cpu(self) -> "Packed":
        """The same in tensors that belong to nothing else."""
        return Packed(self.numbers.cpu().contiguous(), None if self.scale is None else self.scale.cpu())

    def of_tokens(self, index: Tensor) -> "Packed":
        """Some of the tokens, by an index ``[n]`` int64 that all heads share."""
        scale = None if self.scale is None else self.scale[:, index]
        return Packed(self.numbers[:, index], scale)

    def unpacked(self) -> Tensor:
        """The numbers again, ``[H, K, D]`` float32."""
        numbers = self.numbers
        if numbers.dtype == torch.uint8:
            numbers = torch.cat((numbers & 15, numbers >> 4), dim=-1).float() - 8
        return numbers.float() if self.scale is None else numbers.float() * self.scale.float().unsqueeze(-1)


def width_of(width: int, dtype: str) -> int:
    """Stored numbers of a head of that width."""
    return width // 2 if dtype == "int4" else width


def bytes_of(width: int, dtype: str) -> int:
    """Bytes of one token's keys or values in one head."""
    return width_of(width, dtype) * _STORED[dtype].itemsize + (SCALE.itemsize if dtype in _STEPS else 0)
