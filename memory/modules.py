"""Building blocks of the networks that are hiermem's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AtLeastFloat32(nn.Module):
    """A module whose floating-point tensors stay float32 where the model around it is cast to 16 bits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AtLeastFloat32":
        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            lower = new.is_floating_point() and torch.finfo(new.dtype).bits < 32
            return tensor.to(new.device) if lower else new

        super()._apply(moved, recurse)
        return self


class Projection(nn.Module):
    """A linear map that starts at 0; no `nn.Linear`, so that adapters for all linear layers pass it by."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """``[…, outputs]`` of ``x […, inputs]``."""
        return F.linear(x, self.weight, self.bias)
