"""Head shares and linear scores without training: what is attended to when a text is read again.

The tokens that a question will need are unknown when tokens are evicted, but a second reading of the same
text comes close (KVzip, arXiv 2505.23416, keeps tokens by it). Which tokens it needs differs from text to
text. How many of them each head needs hardly does: that is its share. Which they are is predicted by a
linear map of keys and values (`hiermem.training.linear_fit`).

Dimension names: B batch, G KV heads, R query heads per KV head, Q shown queries, T cached tokens, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    shares = [_shares(_received_again(reader, piece, between, first, fit), config.kept) for piece in bar]
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
def _received_again(
    reader: Reader, piece: list[int], between: list[int], first: list[int], fit: LinearFit
) -> Tensor:
    """Most attention that each token of ``piece`` receives when it is read again, ``[L, G, T]`` float32.

    Args:
        between: what is read between the two readings.
        first: what texts begin with.
        fit: takes the text in.
    """
    adapter, device = reader.adapter, reader.device
    policy = SecondReading(first=len(first) + len(piece) + len(between))
    memory = adapter.whole_memory(policy=policy)
    ids = torch.tensor([[*first, *piece, *between, *piece]], device=device)
    reader.read(memory, ids)
    caches = memory.caches
    fit.add(caches, [cache.state["received"][0] for cache in caches], len(first), len(first) + len(piece))
    received = []
    for cache in caches:  # layers with a sliding window have lost what left it
        assert cache.positions is not None
        # Tokens outside the first reading are counted in a column of their own, which is cut off again.
        place = cache.positions[0] - len(first)
        place = place.masked_fill(place < 0, len(piece)).clamp(max=len(piece))
        found = torch.zeros(place.shape[0], len(piece) + 1, device=device)
        received.append(found.scatter_(1, place, cache.state["received"][0])[:, :-1])
    return torch.stack(received).cpu()


@dataclass(frozen=True)
class SecondReading(EvictionPolicy):
    """Keeps all tokens and notes the most attention that each receives from any later reading.

    Attributes:
        first: position of the first token that is read again.
    """

    first: int = 0

    name: ClassVar[str] = "second reading"
    evicts: ClassVar[bool] = False

    @property
    def period(self) -> int:
        return 1

    def observed_mask(self, positions: Tensor) -> Tensor:
        return positions >= self.first

    def observer(self, shown: ObservedQueries) -> Observer:
        return _most

    def scores(self, stats: CacheStats) -> Tensor:
        return stats.state["received"]


def _most(parts: Sequence[AttentionStats]) -> list[dict[str, Tensor]]:
    return [{"received": _most_of(part)} for part in parts]


def _most_of(part: AttentionStats) -> Tensor:
    received = extend_state(part.state.get("received"), part.positions)
    if part.attention.shape[3] == 0:  # no query of this chunk is of the second reading
        return received
    return torch.maximum(received, part.attention.amax((2, 3)).float())
