"""Head shares and linear scores without training: what is attended to when a text is read again.

The tokens that a question will need are unknown when tokens are evicted, but a second reading of the same
text comes close (KVzip, arXiv 2505.23416, keeps tokens by it). Which tokens it needs differs from text to
text. How many of them each head needs hardly does: that is its share. Which they are is predicted by a
linear map of keys and values (`hiermem.training.linear_fit`).

A layer with a sliding window sees nothing of a first reading in the second. There, attention counts from
within the window, but from near by, where all tokens get some; this is ours.

Dimension names: B batch, G KV heads, R query heads per KV head, Q shown queries, T cached tokens, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.policies.base import (
    AttentionStats,
    CacheStats,
    EvictionPolicy,
    ObservedQueries,
    Observer,
    extend_state,
)
from hiermem.reader import Reader
from hiermem.settings import check_settings
from hiermem.text import beginning, encode
from hiermem.training.linear_fit import LinearFit

AGAIN = "\n\nRepeat the previous context:\n\n"

_NEAR = 8
"""Part of a sliding window that is near by."""


@dataclass(frozen=True)
class CalibrationConfig:
    """Settings of a calibration, chosen on train books (`docs/lab-notes/head-budgets.md`).

    Attributes:
        tokens: length of each text that is read twice; both readings must fit the trained range.
        texts: how many texts are read; the shares are their mean.
        kept: of all tokens in all heads, the share with the most attention counts.
        power: shares are raised to this power; less than 1 evens them out.
    """

    tokens: int = 2048
    texts: int = 2
    kept: float = 0.1
    power: float = 0.75

    def __post_init__(self) -> None:
        check_settings(self)
        if self.tokens < 64 or self.texts < 1:
            raise InputError(
                f"A calibration needs a text of at least 64 tokens, not {self.texts} of {self.tokens}."
            )
        if not 0 < self.kept < 1 or not 0 < self.power <= 1:
            raise InputError(
                f"kept must lie between 0 and 1 and power in 0..1, not {self.kept} and {self.power}."
            )


@dataclass(frozen=True)
class Calibration:
    """Head shares and linear scores, from texts that were read twice.

    Attributes:
        shares: of all KV heads, layers x heads, with mean 1.
        linear: weights of the policy `linear`, of each layer ``[G, F]`` float32.
    """

    shares: list[list[float]]
    linear: list[Tensor]


def calibrate(reader: Reader, ids: Sequence[int], config: CalibrationConfig) -> Calibration:
    """Read texts twice.

    Args:
        ids: tokens of a long text, from which evenly spaced pieces are read.

    Raises:
        InputError: the text is too short, or two readings of a piece do not fit the trained range.
    """
    from tqdm.auto import tqdm

    if len(ids) < config.tokens * config.texts:
        raise InputError(
            f"The text has {len(ids)} tokens, a calibration reads {config.tokens * config.texts}: give a "
            f"longer text, or lower --tokens."
        )
    between = encode(reader.tokenizer, AGAIN)
    first = beginning(reader.tokenizer)
    if len(first) + 2 * config.tokens + len(between) > reader.adapter.trained_range:
        raise InputError(
            f"Two readings of {config.tokens} tokens exceed the backbone's trained range of "
            f"{reader.adapter.trained_range} positions: lower --tokens."
        )
    starts = [len(ids) // config.texts * text for text in range(config.texts)]
    pieces = [list(ids[start : start + config.tokens]) for start in starts]
    bar = tqdm(pieces, desc="calibrating", unit="text", disable=None)
    fit = LinearFit(reader.adapter.geometries)
    shares = [_shares(_received(reader, piece, between, first, fit), config.kept) for piece in bar]
    return Calibration(evened(torch.stack(shares).mean(0).tolist(), config.power), fit.weights())


def fitting(reader: Reader, config: CalibrationConfig) -> CalibrationConfig:
    """The same with pieces as long as two readings of them fit the trained range."""
    beside = len(beginning(reader.tokenizer)) + len(encode(reader.tokenizer, AGAIN))
    return replace(config, tokens=min(config.tokens, (reader.adapter.trained_range - beside) // 2))


def evened(shares: list[list[float]], power: float) -> list[list[float]]:
    """Head shares, layers x heads, raised to a power, with mean 1: the budget is shared out, not changed."""
    raised = torch.tensor(shares) ** power
    return (raised / raised.mean()).tolist()


def _shares(received: Tensor, kept: float) -> Tensor:
    """Of the tokens with the most attention anywhere, each head's share: ``[L, G, T]`` to ``[L, G]``."""
    least = received.flatten().topk(max(int(kept * received.numel()), 1)).values[-1]
    return (received >= least).float().mean(-1)


@torch.inference_mode()
def _received(
    reader: Reader, piece: list[int], between: list[int], first: list[int], fit: LinearFit
) -> Tensor:
    """Most attention that each token of ``piece`` receives when it is read again, ``[L, G, T]`` float32; in
    layers with a sliding window, from anywhere in it but near by.

    Args:
        between: what is read between the two readings.
        first: what texts begin with.
        fit: takes the text in.
    """
    adapter = reader.adapter
    ids = torch.tensor([[*first, *piece, *between, *piece]], device=reader.device)
    windows = [geometry.window for geometry in adapter.geometries]
    shortest = min((window for window in windows if window), default=None)
    near = None if shortest is None else max(shortest // _NEAR, 1)
    policy = SecondReading(first=len(first) + len(piece) + len(between), near=near)
    # One decision behind the end of all: what leaves a window is still there to be looked at.
    memory = adapter.whole_memory(policy=policy, interval=ids.shape[1] + 1)
    reader.read(memory, ids)
    names = ["within" if window else "received" for window in windows]
    received = [cache.state[name][0] for cache, name in zip(memory.caches, names, strict=True)]
    fit.add(memory.caches, received, len(first), len(first) + len(piece))
    return torch.stack([seen[:, len(first) : len(first) + len(piece)] for seen in received]).cpu()


@dataclass(frozen=True)
class SecondReading(EvictionPolicy):
    """Keeps all tokens and notes the most attention that each receives from any later reading.

    Attributes:
        first: position of the first token that is read again.
        near: note, too, the most that it receives from anywhere but the next tokens, this one fewer; None:
            nobody asks.
    """

    first: int = 0
    near: int | None = None

    name: ClassVar[str] = "second reading"
    evicts: ClassVar[bool] = False

    @property
    def period(self) -> int:
        return 1

    def observed_mask(self, positions: Tensor) -> Tensor:
        return positions >= (self.first if self.near is None else 0)

    def observer(self, shown: ObservedQueries) -> Observer:
        return partial(_noted, self, shown.positions)

    def scores(self, stats: CacheStats) -> Tensor:
        return stats.state["received"]


def _noted(
    policy: SecondReading, queries: Tensor, parts: Sequence[AttentionStats]
) -> list[dict[str, Tensor]]:
    """States of a layer's parts after the queries at these positions, ``[B, Q]`` int64."""
    again, states = queries >= policy.first, []
    for part in parts:
        state = {"received": _most(part, "received", again[:, None, :, None])}
        if policy.near is not None:
            far = queries[:, None, :, None] - part.positions.unsqueeze(2) >= policy.near
            state["within"] = _most(part, "within", far)
        states.append(state)
    return states


def _most(part: AttentionStats, name: str, counted: Tensor) -> Tensor:
    """Most attention that each token has received so far, ``[B, G, T]`` float32.

    Args:
        name: of the state.
        counted: from which queries it counts, ``[B, G or 1, Q, T or 1]`` bool.
    """
    received = extend_state(part.state.get(name), part.positions)
    if part.attention.shape[3] == 0:  # no query of this chunk is looked at
        return received
    return torch.maximum(received, (part.attention * counted.unsqueeze(2)).amax((2, 3)).float())
