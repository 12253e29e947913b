"""The spectrogram of received attention, averaged over time (NAMM, arXiv 2410.13166).

A cached token's signal is the attention that it receives from one query after the other. A short-time
Fourier transform with a fixed window is a linear map, so one matrix product makes all frames of a chunk.
Frames end at multiples of `hop` true positions; what of an unfinished frame has been seen waits with the
token as its tail, so cutting a text into other chunks changes nothing.

Dimension names: B batch, G KV heads, R query heads per KV head, Q shown queries, T cached tokens, F frames
of a chunk, W queries of a frame, K queries in the tail.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.policies.base import ShownQueries, grown


@dataclass(frozen=True)
class SpectrogramConfig:
    """Settings of the spectrogram; the defaults are the published ones.

    Attributes:
        width: queries of a frame (n_fft), under a periodic Hann window.
        hop: queries from the end of a frame to the end of the next. Wider than a frame, queries between two
            frames are not looked at, which costs as much less.
        decay: share of the moving average that is left after one more query.
    """

    width: int = 32
    hop: int = 16
    decay: float = 0.99

    def __post_init__(self) -> None:
        if self.width < 2 or self.hop < 1 or not 0.0 < self.decay < 1.0:
            raise InputError(
                f"A spectrogram needs a width of at least 2, a hop of at least 1 and a decay between 0 and "
                f"1, not {self.width}, {self.hop} and {self.decay}."
            )

    @property
    def bins(self) -> int:
        """Features per token: magnitudes of the one-sided transform."""
        return self.width // 2 + 1

    @property
    def kept(self) -> float:
        """Share of the moving average that is left after one more frame."""
        return self.decay**self.hop

    def looks_at(self, positions: Tensor) -> Tensor:
        """Which queries are part of a frame, by their true positions."""
        return positions % self.hop >= self.hop - self.width

    def pending(self, seen: int) -> int:
        """How many of the last queries belong to a frame that is not complete."""
        return max(self.width - self.hop + seen % self.hop, 0)


class SpectrogramObserver:
    """Adds one chunk's frames to the moving averages, layer by layer.

    The state of a token is ``average [B, G, T, bins]`` and ``tail [B, G, T, K]``, both float32.
    """

    def __init__(self, config: SpectrogramConfig, shown: ShownQueries) -> None:
        self._config = config
        device = shown.columns.device
        spans = [(start, start + new) for start, new in zip(shown.starts, shown.valid, strict=True)]
        counts = [end // config.hop - start // config.hop for start, end in spans]
        self._frames = max(counts)
        starts = torch.tensor(shown.starts, device=device).view(-1, 1)
        count = torch.tensor(counts, device=device).view(-1, 1)
        frame = torch.arange(self._frames, device=device)
        age = count - 1 - frame
        self._weights = ((1 - config.kept) * config.kept ** age.clamp(min=0)).masked_fill(age < 0, 0.0)
        self._faded = (config.kept**count).view(-1, 1, 1, 1)
        ends = (starts // config.hop + 1 + frame) * config.hop - starts  # columns
        within = torch.arange(-config.width, 0, device=device)
        self._framed = (ends.unsqueeze(2) + within).flatten(1)  # [B, F * W]
        pending = max(config.pending(end) for _, end in spans)
        valid = torch.tensor(shown.valid, device=device).view(-1, 1)
        self._left = valid + torch.arange(-pending, 0, device=device)  # [B, K]
        self._place = torch.zeros(shown.width, dtype=torch.int64, device=device)
        self._place[shown.columns] = torch.arange(len(shown.columns), device=device)

    def __call__(
        self, state: Mapping[str, Tensor], attention: Tensor, positions: Tensor, span: int
    ) -> dict[str, Tensor]:
        B, G, _, _, T = attention.shape
        tail = grown(state.get("tail"), positions, max(self._config.width - self._config.hop, 0))
        average = grown(state.get("average"), positions, self._config.bins) * self._faded
        signal, known = attention.mean(2, dtype=torch.float32), tail.shape[3]
        if known:
            signal = torch.cat((tail.transpose(2, 3), signal), dim=2)

        def at(columns: Tensor) -> Tensor:
            """The signal at columns of the chunk, negative ones in the tail: ``[B, G, columns, T]``."""
            place = self._place[columns.clamp(0, len(self._place) - 1)]  # beyond: frames that weigh nothing
            index = torch.where(columns < 0, columns + known, place + known).clamp(min=0)
            if B == 1:
                return signal.index_select(2, index[0])
            return signal.gather(2, index.view(B, 1, -1, 1).expand(-1, G, -1, T))

        if self._frames:
            frames = at(self._framed).unflatten(2, (self._frames, self._config.width))
            parts = _basis(self._config.width, signal.device) @ frames  # [B, G, F, 2 * bins, T]
            magnitudes = parts.unflatten(3, (2, self._config.bins)).square_().sum(3).sqrt_()
            new = (magnitudes * self._weights.view(B, 1, -1, 1, 1)).sum(2)
            average = average + new.transpose(2, 3)
        return {"average": average, "tail": at(self._left).transpose(2, 3).contiguous()}


@lru_cache
def _basis(width: int, device: torch.device) -> Tensor:
    """Windowed cosines and sines, ``[2 * bins, W]``: the real and imaginary parts of the transform."""
    window = torch.hann_window(width, periodic=True, device=device)
    places = torch.arange(width, device=device)
    angle = torch.outer(places[: width // 2 + 1], places) % width * (2 * math.pi / width)
    return torch.cat((angle.cos() * window, angle.sin() * window))
