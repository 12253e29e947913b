"""The spectrogram of received attention, averaged over time (NAMM, arXiv 2410.13166).

A cached token's signal is the attention that it receives from one query after the other. A short-time
Fourier transform with a fixed window is a linear map, so one matrix product makes all frames of a chunk.
Frames end at multiples of `hop` true positions; what of an unfinished frame has been seen waits with the
token as its tail, so cutting a text into other chunks changes nothing.

Dimension names: B batch, G KV heads, R query heads per KV head, Q shown queries, T cached tokens, F frames
of a chunk, W queries of a frame, K queries in the tail, X = the sum of G * T over the parts of a layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.policies.base import AttentionStats, ObservedQueries, extend_state
from hiermem.settings import check_settings


@dataclass(frozen=True)
class SpectrogramConfig:
    """Settings of the spectrogram; the defaults are the published ones.

    Attributes:
        width: queries of a frame (n_fft), under a periodic Hann window.
        hop: queries from the end of a frame to the end of the next. Wider than a frame, queries between two
            frames are not observed, which costs as much less.
        decay: share of the moving average that is left after one more query.
    """

    width: int = 32
    hop: int = 16
    decay: float = 0.99

    def __post_init__(self) -> None:
        check_settings(self)
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

    def observed_mask(self, positions: Tensor) -> Tensor:
        """Which queries are part of a frame, by their true positions."""
        return positions % self.hop >= self.hop - self.width

    def pending(self, num_tokens: int) -> int:
        """How many of the last queries belong to a frame that is not complete."""
        return max(self.width - self.hop + num_tokens % self.hop, 0)


class SpectrogramObserver:
    """Adds one chunk's frames to the moving averages, layer by layer: tokens of all heads stand side by side.

    The state of a token is ``average [B, G, T, bins]`` and ``tail [B, G, T, K]``, both float32.
    """

    def __init__(self, config: SpectrogramConfig, shown: ObservedQueries) -> None:
        self._config = config
        device = shown.columns.device
        self._basis, self._shown = _basis(config.width, device), len(shown.columns)
        spans = [(start, start + new) for start, new in zip(shown.starts, shown.valid, strict=True)]
        counts = [end // config.hop - start // config.hop for start, end in spans]
        self._frames = max(counts)
        cpu = torch.device("cpu")  # a device would have to be waited for
        starts, count = (torch.tensor(row, device=cpu).view(-1, 1) for row in (shown.starts, counts))
        frame = torch.arange(self._frames, device=cpu)
        age = count - 1 - frame
        weights = ((1 - config.kept) * config.kept ** age.clamp(min=0)).masked_fill(age < 0, 0.0)
        self._weights, self._faded = weights.to(device), (config.kept**count).view(-1, 1, 1, 1).to(device)
        ends = (starts // config.hop + 1 + frame) * config.hop - starts  # columns
        within = torch.arange(-config.width, 0, device=cpu)
        self._known = max(config.pending(start) for start, _ in spans)
        pending = max(config.pending(end) for _, end in spans)
        valid = torch.tensor(shown.valid, device=cpu).view(-1, 1)
        place, columns = torch.zeros(shown.width, dtype=torch.int64, device=cpu), shown.on_cpu
        place[shown.columns.cpu() if columns is None else columns] = torch.arange(self._shown, device=cpu)

        def rows(columns: Tensor) -> Tensor | None:
            """Rows ``[B, C]`` of the signal for the chunk's columns, negative in the tail; None: all rows."""
            inside = place[columns.clamp(0, shown.width - 1)]  # beyond: frames that weigh nothing
            found = torch.where(columns < 0, columns, inside).add(self._known).clamp(min=0)
            straight = np.tile(np.arange(self._known + self._shown), (len(spans), 1))
            return None if np.array_equal(found.numpy(), straight) else found.to(device)

        self._framed = rows((ends.unsqueeze(2) + within).flatten(1))  # [B, F * W]
        self._left = rows(valid + torch.arange(-pending, 0, device=cpu)) if pending else None  # [B, K]
        self._pending = pending

    def __call__(self, parts: Sequence[AttentionStats]) -> list[dict[str, Tensor]]:
        if not (self._frames or self._known or self._shown):  # one token, mostly
            return [self._unseen(part) for part in parts]
        signal = torch.cat([self._signal(part) for part in parts], dim=2)  # [B, K + Q, X]
        sizes = [part.positions[0].numel() for part in parts]
        new = self._averaged(signal).split(sizes, dim=2) if self._frames else [None] * len(parts)
        left = _picked(signal, self._left) if self._pending else signal[:, :0]
        return [self._state(*of_part) for of_part in zip(parts, new, left.split(sizes, dim=2), strict=True)]

    def _signal(self, part: AttentionStats) -> Tensor:
        """Attention that a part's tokens receive from each query, that of the tail first."""
        signal = part.attention.mean(2, dtype=torch.float32)  # [B, G, Q, T]
        if self._known:
            tail = extend_state(part.state.get("tail"), part.positions, self._known)
            tail = tail[..., tail.shape[3] - self._known :]  # rows that are gone may have needed a longer one
            signal = torch.cat((tail.transpose(2, 3), signal), dim=2)
        return signal.transpose(1, 2).flatten(2)

    def _averaged(self, signal: Tensor) -> Tensor:
        """Sums that the chunk's frames add to the moving averages, ``[B, bins, X]``."""
        frames = _picked(signal, self._framed).unflatten(1, (self._frames, self._config.width))
        parts = self._basis @ frames  # [B, F, 2 * bins, X]
        magnitudes = parts.unflatten(2, (2, self._config.bins)).square_().sum(2).sqrt_()
        return (magnitudes * self._weights.view(len(signal), -1, 1, 1)).sum(1)

    def _unseen(self, part: AttentionStats) -> dict[str, Tensor]:
        """State of a part whose tokens receive nothing that counts."""
        average = extend_state(part.state.get("average"), part.positions, self._config.bins)
        return {"average": average, "tail": average.new_zeros(*part.positions.shape, 0)}

    def _state(self, part: AttentionStats, new: Tensor | None, left: Tensor) -> dict[str, Tensor]:
        average = extend_state(part.state.get("average"), part.positions, self._config.bins)
        G = part.positions.shape[1]
        if new is not None:
            average = average * self._faded + new.unflatten(2, (G, -1)).permute(0, 2, 3, 1)
        return {"average": average, "tail": left.unflatten(2, (G, -1)).permute(0, 2, 3, 1).contiguous()}


def _picked(signal: Tensor, rows: Tensor | None) -> Tensor:
    """Rows ``[B, C]`` of each signal, ``[B, C, X]``; None: all of them."""
    if rows is None:
        return signal
    if len(signal) == 1:
        return signal.index_select(1, rows[0])
    return signal.gather(1, rows.unsqueeze(2).expand(-1, -1, signal.shape[2]))


@lru_cache
def _basis(width: int, device: torch.device) -> Tensor:
    """Windowed cosines and sines, ``[2 * bins, W]``: the real and imaginary parts of the transform."""
    window = torch.hann_window(width, periodic=True, device=device)
    places = torch.arange(width, device=device)
    angle = torch.outer(places[: width // 2 + 1], places) % width * (2 * math.pi / width)
    return torch.cat((angle.cos() * window, angle.sin() * window))
