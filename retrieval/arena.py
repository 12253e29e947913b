"""Long-lived small tensors, packed into large blocks.

Reading allocates and frees large tensors all the time. A small one that stays would pin the freed space
around it, and the process would grow by a multiple of what it keeps; in blocks of their own they do not.
"""

import math

import torch
from torch import Tensor

SLAB_BYTES = 1 << 20


class TensorArena:
    """Copies tensors into shared blocks; the copies are views that stay valid for ever.

    Attributes:
        dtype: of everything that is kept.
        shape: of one row.
    """

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> None:
        self.dtype, self.shape = dtype, shape
        self._rows = max(SLAB_BYTES // (math.prod(shape) * dtype.itemsize), 1)
        self._slab: Tensor | None = None
        self._used = 0

    def keep(self, rows: Tensor) -> Tensor:
        """A lasting copy of ``rows [n, *shape]``; an ordinary tensor, in inference mode too."""
        count = len(rows)
        with torch.inference_mode(False), torch.no_grad():
            if self._slab is None or self._used + count > len(self._slab):
                self._slab = torch.empty((max(self._rows, count), *self.shape), dtype=self.dtype)
                self._used = 0
            kept = self._slab[self._used : self._used + count]
            kept.copy_(rows)
        self._used += count
        return kept
