"""Weights of the policy `linear` in closed form: ridge regression on what a second reading looks back at.

The target is the logarithm of the most attention that a token receives when its text is read again (KVzip,
arXiv 2505.23416). A few thousand tokens are enough (`docs/lab-notes/eviction.md`).

Dimension names: G KV heads, T tokens of a text, F features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hiermem.memory.cache.layer import LayerCache, LayerGeometry
from hiermem.memory.policies.linear import num_features, token_features

RIDGE = 7e-4
"""Of the mean squared feature, added to each: chosen on train books."""

LEAST = 1e-5
"""Added to attention before its logarithm."""


class LinearFit:
    """Sums over texts that weights are solved for.

    Args:
        geometries: of the backbone's layers.
    """

    def __init__(self, geometries: Sequence[LayerGeometry]) -> None:
        self.geometries = tuple(geometries)
        sizes = [(geometry.heads, num_features(geometry)) for geometry in geometries]
        self._squares = [torch.zeros(heads, features, features) for heads, features in sizes]
        self._products = [torch.zeros(heads, features, 1) for heads, features in sizes]

    def add(self, caches: Sequence[LayerCache], received: Sequence[Tensor], first: int, end: int) -> None:
        """Take a text in.

        Args:
            caches: of each layer, of one row, all heads alike.
            received: of each layer the most attention from the second reading, in layers with a sliding
                window from within it, ``[G, T]`` float32, of the tokens in its cache.
            first: true position of the text's first token.
            end: that behind its last.
        """
        for layer, (geometry, cache) in enumerate(zip(self.geometries, caches, strict=True)):
            held, positions, frames = cache.held(), cache.positions, cache.position_ids
            assert held is not None and positions is not None and frames is not None
            own = ((positions[0, 0] >= first) & (positions[0, 0] < end)).nonzero().squeeze(-1)
            keys, values, frames = (tensor.index_select(2, own) for tensor in (*held, frames))
            x = token_features(keys, values, geometry.rotary, frames)[0].cpu()
            y = (received[layer].index_select(1, own) + LEAST).log().unsqueeze(-1).cpu()
            self._squares[layer] += x.mT @ x
            self._products[layer] += x.mT @ y

    def weights(self) -> list[Tensor]:
        """Of each layer, ``[G, F]`` float32."""
        return [_solved(A, b) for A, b in zip(self._squares, self._products, strict=True)]


def _solved(squares: Tensor, products: Tensor) -> Tensor:
    """w of (A + r I) w = b for each head, where r is `RIDGE` of A's mean diagonal."""
    mean = squares.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return torch.linalg.solve(squares + RIDGE * mean * torch.eye(squares.shape[-1]), products).squeeze(-1)
