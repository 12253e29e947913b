"""Where cached tokens stand for the rotary embedding once the document outgrows the trained range.

Every token has a *true position*: its index among the tokens that were read. The backbone sees *frame
positions*: true positions measured from the start of a frame that moves along with the document, so that
they never leave the range the backbone was trained on. A key is cached rotated at its frame position; when
the frame moves, the cached keys are turned by the difference, which is exact because rotations add up.

Dimension names: B batch, G KV heads, T cached tokens, D head width, F rotary frequencies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

POSITION_MODES = ("distance", "absolute", "compact")

# The frame moves in steps of this share of the range: rarely enough that a key is rounded to its dtype a
# handful of times before it reaches the far edge (where it stays), and that turning keys costs nothing.
FRAME_STEP_SHARE = 8


@dataclass(frozen=True)
class Rotary:
    """How one layer's keys are rotated.

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
        angles = shift.unsqueeze(-1).float() * self.frequencies.to(keys.device)
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


def frame_start(seen: int, interval: int, trained_range: int) -> int:
    """True position of frame position 0 while the interval that holds token ``seen`` is read.

    The frame depends on the interval alone, not on how it is cut into chunks, so reading whole, in pieces
    or resumed gives the same positions. Within an interval no frame position reaches ``trained_range``.
    """
    interval_end = (seen // interval + 1) * interval
    excess = interval_end - trained_range
    if excess <= 0:
        return 0
    step = max(trained_range // FRAME_STEP_SHARE, interval)
    step = min(step, max(trained_range - interval, 1))
    return -(-excess // step) * step
