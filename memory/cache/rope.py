"""Rotation of keys (RoPE, arXiv 2104.09864), also of those that are cached.

Dimension names: B batch, G KV heads, T cached tokens, D head width, F rotary frequencies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """Rotation of one layer's keys.

    Attributes:
        frequencies: radians per position, ``[F]`` float32; ``2 F`` leading dimensions of a head rotate.
        interleaved: whether pairs are neighbours ``(0, 1), (2, 3), …`` (GPT-J layout) rather than the two
            halves ``(0, F), (1, F + 1), …`` (Llama and GPT-NeoX layout).
    """

    frequencies: Tensor
    interleaved: bool = False

    def turn(self, keys: Tensor, shift: Tensor) -> Tensor:
        """Rotate cached keys by further ``shift`` positions (RoPE: R(a + s) = R(s) R(a)).

        Args:
            keys: ``[B, G, T, D]``, any float dtype; computed in float32.
            shift: ``[B, G or 1, T]`` integer positions, usually at most 0.
        """
        angles = shift.unsqueeze(-1).float() * self.frequencies.to(keys.device)  # θ = s ω
        cos, sin = angles.cos(), angles.sin()
        width = 2 * self.frequencies.numel()
        rotated, rest = keys[..., :width].float(), keys[..., width:]
        if self.interleaved:
            even, odd = rotated[..., 0::2], rotated[..., 1::2]
            turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
        else:
            low, high = rotated.chunk(2, dim=-1)
            turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
        return torch.cat((turned.to(keys.dtype), rest), dim=-1)

    def norms(self, keys: Tensor) -> Tensor:
        """Norms of the pairs that rotate, which no rotation changes: ``[…, F]`` of keys ``[…, D]``."""
        rotated = keys[..., : 2 * self.frequencies.numel()]
        if self.interleaved:
            return rotated.unflatten(-1, (-1, 2)).norm(dim=-1)
        return rotated.unflatten(-1, (2, -1)).norm(dim=-2)
