"""NAMM, the network that scores cached tokens (An Evolved Universal Transformer Memory, arXiv 2410.13166).

It sees of a token how the attention it receives has behaved (a spectrogram) and how old it is, lets tokens
attend to newer ones (backward attention memory, BAM), and gives each a score. Nothing in it depends on the
backbone.

Dimension names: B batch, G KV heads, N = B * G, T cached tokens.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.errors import InputError
from hiermem.memory.modules import AtLeastFloat32, Projection
from hiermem.memory.policies.base import CacheStats, EvictionPolicy, ObservedQueries, Observer
from hiermem.memory.policies.spectrogram import SpectrogramConfig, SpectrogramObserver
from hiermem.settings import check_settings


@dataclass
class NammConfig:
    """Settings of the network; the defaults are the published ones and give 4,172 parameters.

    Attributes:
        spectrogram: settings of the features of received attention.
        frequencies: sines and cosines of the age.
        hidden: width of the backward attention memory; 0 leaves it out, and the score is a weighted sum.
        threshold: score below which a token is evicted even where the budget has room for it; None leaves
            it to the budget alone.
    """

    spectrogram: SpectrogramConfig = field(default_factory=SpectrogramConfig)
    frequencies: int = 4
    hidden: int = 32
    threshold: float | None = 0.0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.frequencies < 1 or self.hidden < 0:
            raise InputError(
                f"NAMM needs at least one frequency and no negative hidden width, not {self.frequencies} and "
                f"{self.hidden}."
            )

    @property
    def features(self) -> int:
        """Width of what the network sees of a token."""
        return 2 * self.frequencies + self.spectrogram.bins


class Namm(AtLeastFloat32):
    """Scores of cached tokens from their ages and averaged spectrograms.

    All parameters start at 0, as published: every score is 0.

    Attributes:
        mean: of the spectrogram's features, ``[bins]`` float32; frozen, part of the checkpoint.
        deviation: of the same features, as the mean.
    """

    mean: Tensor
    deviation: Tensor
    rates: Tensor

    def __init__(self, config: NammConfig) -> None:
        super().__init__()
        self.config = config
        if config.hidden:
            self.look = Projection(config.features, 3 * config.hidden)
            self.change = Projection(config.hidden, 2 * config.features)
        self.score = Projection(config.features, 1)
        self.register_buffer("mean", torch.zeros(config.spectrogram.bins))
        self.register_buffer("deviation", torch.ones(config.spectrogram.bins))
        rates = 50000.0 ** (-torch.arange(config.frequencies) / config.frequencies)
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, ages: Tensor, average: Tensor) -> Tensor:
        """Scores ``[N, T]`` float32.

        Args:
            ages: newest position minus the token's, ``[N, T]`` int64, falling along T; a token attends to
                itself and at what follows it.
            average: moving averages of the spectrogram, ``[N, T, bins]`` float32.
        """
        angles = ages.unsqueeze(-1) * self.rates
        spectrum = (average - self.mean) / self.deviation.clamp(min=1e-7)
        x = torch.cat((angles.sin(), angles.cos(), spectrum), dim=-1)
        return self.score(self._reminded(x) if self.config.hidden else x).squeeze(-1)

    def _reminded(self, x: Tensor) -> Tensor:
        """Features ``[N, T, features]`` changed by what each token sees in itself and in newer ones (BAM)."""
        newest_first = self.look(x).flip(1).unsqueeze(1)
        query, key, value = newest_first.chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True).squeeze(1).flip(1)
        shift, scale = self.change(attended).chunk(2, dim=-1)
        return x * (1 + scale) + shift


@dataclass(frozen=True)
class NammPolicy(EvictionPolicy):
    """Keeps what the network scores highest.

    Attributes:
        network: shared by all layers and heads.
    """

    network: Namm = field(default_factory=lambda: Namm(NammConfig()))

    name: ClassVar[str] = "namm"
    supplied: ClassVar[frozenset[str]] = EvictionPolicy.supplied | {"network"}

    @property
    def drops(self) -> bool:
        return self.network.config.threshold is not None

    @property
    def period(self) -> int:
        return self.network.config.spectrogram.hop

    def observed_mask(self, positions: Tensor) -> Tensor:
        return self.network.config.spectrogram.observed_mask(positions)

    def state(self, num_tokens: int) -> dict[str, tuple[int, ...]]:
        spectrogram = self.network.config.spectrogram
        return {"average": (spectrogram.bins,), "tail": (spectrogram.pending(num_tokens),)}

    def observer(self, shown: ObservedQueries) -> Observer:
        return SpectrogramObserver(self.network.config.spectrogram, shown)

    @torch.no_grad()
    def scores(self, stats: CacheStats) -> Tensor:
        positions, average = stats.positions, stats.state["average"]
        if stats.ragged:  # empty slots may lie between tokens: to the front, to which no token attends
            positions, order = positions.sort(dim=-1, stable=True)
            average = average.gather(2, order.unsqueeze(-1).expand_as(average))
        ages = (stats.num_tokens - 1 - positions).flatten(0, 1)
        scores = self.network(ages, average.flatten(0, 1)).view_as(positions)
        threshold = self.network.config.threshold
        if threshold is not None:
            scores = scores.masked_fill(scores < threshold, -torch.inf)
        return torch.empty_like(scores).scatter_(2, order, scores) if stats.ragged else scores
