"""Scores of tokens from their own keys and values, without a look at the attention.

A linear map for each KV head, fitted in closed form to what a second reading of a text looks back at
(`hiermem.training.linear_fit`). The target is that of KVzip (arXiv 2505.23416); to predict it without the
second reading is the idea of KVzap (arXiv 2601.07891), which trains a network of hidden states. Ours sees
what is cached anyway, so that nothing is observed while a text is read.

Dimension names: B batch, G KV heads, T cached tokens, D head width, F features, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hiermem.errors import InputError
from hiermem.memory.cache.layer import LayerGeometry
from hiermem.memory.cache.rope import Rotary
from hiermem.memory.digest import digest
from hiermem.memory.modules import AtLeastFloat32
from hiermem.memory.policies.base import CacheStats, EvictionPolicy


def token_features(keys: Tensor, values: Tensor, rotary: Rotary | None, position_ids: Tensor) -> Tensor:
    """Features of tokens, whose weighted sum is their score, ``[B, G, T, F]`` float32.

    Its key turned back to position 0, its value, the norms of the key's rotary pairs and of the value, and 1.

    Args:
        keys: ``[B, G, T, D]``, rotated at ``position_ids``.
        values: ``[B, G, T, D']``.
        position_ids: ``[B, G, T]`` int.
    """
    keys, values = keys.float(), values.float()
    parts = [keys, values, values.norm(dim=-1, keepdim=True), torch.ones_like(values[..., :1])]
    if rotary is not None:
        parts = [rotary.turn(keys, -position_ids), *parts[1:], rotary.norms(keys)]
    return torch.cat(parts, dim=-1)


def num_features(geometry: LayerGeometry) -> int:
    """F of a layer."""
    pairs = 0 if geometry.rotary is None else geometry.rotary.frequencies.numel()
    return sum(geometry.widths) + pairs + 2


class LinearScorer(AtLeastFloat32):
    """Weights of the features of every KV head; 0 as long as nobody has fitted them.

    Attributes:
        weights: of each layer, ``[G, F]`` float32.
    """

    def __init__(self, geometries: Sequence[LayerGeometry]) -> None:
        super().__init__()
        shapes = [(geometry.heads, num_features(geometry)) for geometry in geometries]
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])
        self._known_set = False

    @property
    def is_set(self) -> bool:
        """Whether it was fitted; the device is asked until it was."""
        self._known_set = self._known_set or any(bool(weight.any()) for weight in self.weights)
        return self._known_set

    @property
    def digest(self) -> str:
        """A short hash of the weights."""
        return weights_digest(list(self.weights))

    @torch.no_grad()
    def take(self, weights: Sequence[Tensor]) -> None:
        """Take over fitted weights, of each layer ``[G, F]``.

        Raises:
            InputError: they are of another backbone.
        """
        if [tensor.shape for tensor in weights] != [weight.shape for weight in self.weights]:
            raise InputError(
                "The linear scores are of a backbone with other layers or heads: make them for this one with "
                "`hiermem calibrate`."
            )
        for weight, tensor in zip(self.weights, weights, strict=True):
            weight.copy_(tensor)

    def forward(self, stats: CacheStats) -> Tensor:
        """Scores ``[B, G, T]`` float32.

        Raises:
            InputError: nobody has fitted them.
        """
        if not self.is_set:
            raise InputError(UNSET)
        assert stats.keys is not None and stats.values is not None and stats.position_ids is not None
        features = token_features(stats.keys, stats.values, stats.rotary, stats.position_ids)
        weights = self.weights[stats.layer][stats.heads]
        return (features @ weights[None, :, :, None]).squeeze(-1)


UNSET = (
    "The policy linear has no scores for this backbone: make them with `hiermem calibrate` and give the "
    "folder to --evictor, or choose another policy."
)


def weights_digest(weights: Sequence[Tensor]) -> str:
    """A short hash of the weights of all layers."""
    return digest("linear", {str(layer): weight for layer, weight in enumerate(weights)})


GRID = 2.0**-12
"""Scores are multiples of it: in the first layer equal tokens have equal keys and values but for rounding,
which must not choose among them (of equal scores the newer token stays)."""


@dataclass(frozen=True)
class LinearPolicy(EvictionPolicy):
    """Keeps what a linear map of key and value scores highest.

    Attributes:
        network: the map; None: there is none.
    """

    network: LinearScorer | None = None

    name: ClassVar[str] = "linear"
    supplied: ClassVar[frozenset[str]] = EvictionPolicy.supplied | {"network"}

    @torch.no_grad()
    def scores(self, stats: CacheStats) -> Tensor:
        if self.network is None:
            raise InputError(UNSET)
        return (self.network(stats) / GRID).round() * GRID
