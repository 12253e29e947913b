"""Embeddings of sentences, made of the states between a backbone's layers while it reads: search by meaning.

They are taught to stand to one another as those of a sentence encoder do, and cost no second reading. Ours;
HMT finds segments by memory embeddings, one a segment.

Dimension names: T tokens, U sentences, d backbone width, L layers that are looked at, W embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.errors import InputError
from hiermem.memory.digest import digest
from hiermem.memory.modules import AtLeastFloat32, Projection
from hiermem.settings import check_settings


@dataclass
class StateEncoderConfig:
    """Settings of the sentence embeddings made of a backbone's states.

    Attributes:
        layers: numbers of the layers whose output is looked at, 0 the token embeddings; none: there is no
            encoder; None: that which ships for the backbone, where no head is replaced. A model that is
            loaded says which it has.
        hidden: width of the network's inner layer.
        width: W.
    """

    layers: list[int] | None = None
    hidden: int = 512
    width: int = 384

    def __post_init__(self) -> None:
        check_settings(self)
        if self.layers is not None and (
            min(self.layers, default=0) < 0 or self.layers != sorted({*self.layers})
        ):
            raise InputError(f"Layers of a state encoder are ascending numbers from 0, not {self.layers}.")
        if min(self.hidden, self.width) < 1:
            raise InputError("The widths of a state encoder must be at least 1.")


@dataclass(frozen=True)
class TokenVectors:
    """Vectors of tokens, whose sums over sentences are embeddings but for their length.

    Attributes:
        ends: the character after the last of each token in the document, ascending, ``[T]`` int64. A token
            is of the sentence that it ends in: many begin with the space before a word.
        vectors: ``[T, W]`` float32 on the CPU.
    """

    ends: Tensor
    vectors: Tensor

    def with_next(self, other: "TokenVectors") -> "TokenVectors":
        """These and those of the tokens that follow."""
        return TokenVectors(torch.cat((self.ends, other.ends)), torch.cat((self.vectors, other.vectors)))

    def embeddings(self, spans: Tensor) -> Tensor:
        """Embeddings of spans of characters, ``[U, W]`` of length 1; 0 where no token ends in one.

        Args:
            spans: first characters and those after the last, ``[U, 2]`` int64.
        """
        sums = F.pad(self.vectors.cumsum(0), (0, 0, 1, 0))
        first, last = torch.searchsorted(self.ends, spans.contiguous(), right=True).unbind(-1)
        return F.normalize(sums[last] - sums[first], dim=-1)


class StateEncoder(AtLeastFloat32):
    """A network of one inner layer beside a linear map, for each token, and a weight of the token.

    Args:
        config: its settings, with layers.
        width: d.

    Attributes:
        mean: of the states, ``[L * d]``.
        deviation: their standard deviation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: StateEncoderConfig, width: int) -> None:
        super().__init__()
        assert config.layers
        self.config = config
        inputs = len(config.layers) * width
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.direct, self.inner = Projection(inputs, config.width), Projection(inputs, config.hidden)
        self.outer, self.importance = Projection(config.hidden, config.width), Projection(inputs, 1)

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers whose output is looked at."""
        assert self.config.layers is not None
        return self.config.layers

    @property
    def width(self) -> int:
        """W, numbers of an embedding."""
        return self.config.width

    @property
    def digest(self) -> str:
        """Hash of settings and parameters."""
        return digest(repr((self.layers, self.config.hidden, self.width)), self.state_dict())

    @property
    def is_set(self) -> bool:
        """Whether it was ever trained, or its parameters loaded."""
        return bool(self.direct.weight.any())

    def chosen(self, states: Sequence[Tensor]) -> Tensor:
        """The states that are looked at, side by side, ``[…, T, L * d]``.

        Args:
            states: what goes into the first layer and comes out of each, ``[…, T, d]``.
        """
        return torch.cat([states[layer] for layer in self.layers], dim=-1)

    def forward(self, chosen: Tensor) -> Tensor:
        """Vectors of tokens ``[…, T, W]`` float32.

        Args:
            chosen: their states as `chosen` gives them.
        """
        x = (chosen.float() - self.mean) / self.deviation
        vectors = self.direct(x) + self.outer(F.gelu(self.inner(x)))
        return vectors * F.softplus(self.importance(x))
