"""Recency ratio of every head, from one streaming pass over real text: which attend to near tokens alone.

Heads that put nearly all their weight on the tokens near the query need no cache (RecurFormer, arXiv
2410.12850). The paper leaves open the range, the text and how heads are chosen. Here whole KV groups are
chosen under one budget for the backbone, since a group's cache only goes when all its heads do.

Dimension names: L layers, H query heads, B batch, G KV heads, R = H / G, Q queries of a chunk, T cached
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.eval.plots import new_figure
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
from hiermem.text import from_beginning


@dataclass(frozen=True)
class RecencyConfig:
    """Settings of the measurement.

    Attributes:
        tokens: tokens of the text that are read.
        window: w, the local range: a query and the tokens less than w before it are near.
        sinks: first tokens, which a second ratio leaves out: they get what a head has no use for.
    """

    tokens: int = 4096
    window: int = 64
    sinks: int = 4

    def __post_init__(self) -> None:
        check_settings(self)
        if self.window < 1 or self.sinks < 0 or self.tokens <= self.window + self.sinks:
            raise InputError(
                f"A local range of {self.window} tokens after {self.sinks} sinks needs a longer text than "
                f"{self.tokens} tokens: raise --tokens or lower --window."
            )


@dataclass(frozen=True)
class Ratios:
    """Recency ratios of all heads, each ``[L, H]`` float32, between 0 and 1.

    Attributes:
        all: share of a head's attention that is near, the mean over queries.
        without_sinks: the same share of the attention that is not on the sinks.
        groups: number of KV heads of every layer.
    """

    all: Tensor
    without_sinks: Tensor
    groups: int

    @property
    def of_groups(self) -> Tensor:
        """Ratios that KV groups are chosen by, ``[L, G]``: the mean over their heads, without sinks."""
        return self.without_sinks.unflatten(1, (self.groups, -1)).mean(2)


@torch.inference_mode()
def recency_ratios(reader: Reader, ids: Sequence[int], config: RecencyConfig) -> Ratios:
    """Ratios from the first tokens of a text; no attention matrix outlives its chunk.

    Args:
        ids: token ids of a text, which is begun as every text is.

    Raises:
        InputError: the text is shorter than `RecencyConfig.tokens`, or that exceeds the trained range.
    """
    from tqdm.auto import tqdm

    adapter, ids = reader.adapter, from_beginning(reader.tokenizer, list(ids))
    if len(ids) < config.tokens:
        raise InputError(
            f"The text has {len(ids)} tokens, {config.tokens} are read: give a longer text, or lower "
            f"--tokens."
        )
    if config.tokens > adapter.trained_range:
        raise InputError(
            f"{config.tokens} tokens exceed the backbone's trained range of {adapter.trained_range} "
            f"positions: lower --tokens."
        )
    policy = Nearness(window=config.window, sinks=config.sinks)
    memory = adapter.whole_memory(policy=policy)
    read = torch.tensor([ids[: config.tokens]], device=reader.device)
    with tqdm(total=config.tokens, desc="measuring heads", unit="tok", disable=None) as bar:
        reader.read(memory, read, bar.update)
    layers = [_mean(cache.positions, cache.state["near"], config) for cache in memory.caches]
    both = torch.stack(layers).cpu()  # [L, 2, H]
    return Ratios(both[:, 0], both[:, 1], memory.geometries[0].heads)


def _mean(positions: Tensor | None, near: Tensor, config: RecencyConfig) -> Tensor:
    """Means ``[2, H]`` over the queries that have something far to attend to; of layers with a sliding
    window, over those that are still cached."""
    assert positions is not None
    # Earlier queries have nothing far to attend to but sinks, so their ratio says nothing of a head.
    counted = (positions[0] >= config.window + config.sinks)[..., None, None]  # [G, T, 1, 1]
    means = (near[0] * counted).sum(1) / counted.sum(1)  # [G, R, 2]
    return means.flatten(0, 1).T


@dataclass(frozen=True)
class Nearness(EvictionPolicy):
    """Keeps all tokens and notes of each, as a query, how much of its attention was near.

    Attributes:
        window: tokens less than this far back are near.
    """

    window: int = 64

    name: ClassVar[str] = "nearness"
    evicts: ClassVar[bool] = False

    @property
    def period(self) -> int:
        return 1

    def observed_mask(self, positions: Tensor) -> Tensor:
        return torch.ones_like(positions, dtype=torch.bool)

    def observer(self, shown: ObservedQueries) -> Observer:
        return lambda parts: [{"near": self._near(part)} for part in parts]

    def scores(self, stats: CacheStats) -> Tensor:
        return stats.positions.float()

    def _near(self, part: AttentionStats) -> Tensor:
        """Of all tokens as queries, ``[B, G, T, R, 2]`` float32: with the sinks, and without."""
        attention, keys = part.attention.float(), part.positions.unsqueeze(2)  # [B, G, R, Q, T], [B, G, 1, T]
        Q = attention.shape[3]
        queries = part.positions[:, :, -Q:].unsqueeze(3)
        # [B, G, R, Q]: attention on keys less than w back, and on keys that are no sinks.
        near = (attention * (queries - keys < self.window).unsqueeze(2)).sum(-1)
        kept = (attention * (keys >= self.sinks).unsqueeze(2)).sum(-1)
        both = torch.stack((near, near / kept.clamp(min=1e-12)), dim=-1).transpose(2, 3)
        extended = extend_state(part.state.get("near"), part.positions, *both.shape[3:])
        return torch.cat((extended[:, :, :-Q], both), dim=2)


def mean(measured: Sequence[Ratios]) -> Ratios:
    """Means over texts."""
    with_sinks = torch.stack([ratios.all for ratios in measured])
    without = torch.stack([ratios.without_sinks for ratios in measured])
    return Ratios(with_sinks.mean(0), without.mean(0), measured[0].groups)


def choose(of_groups: Tensor, share: float | None = None, threshold: float | None = None) -> list[list[int]]:
    """The KV groups to replace, as pairs of layer and group in the order of layers.

    Args:
        of_groups: recency ratios of all groups, ``[L, G]``.
        share: how many of all groups, those with the highest ratios.
        threshold: or every group with at least this ratio.

    Raises:
        InputError: none or both are given, or one is not between 0 and 1.
    """
    flat = of_groups.flatten()
    if share is not None and threshold is None and 0 <= share <= 1:
        order = flat.sort(descending=True, stable=True).indices[: round(share * len(flat))]
    elif threshold is not None and share is None and 0 <= threshold <= 1:
        order = (flat >= threshold).nonzero().flatten()
    else:
        raise InputError("Choose groups by either a share or a threshold, between 0 and 1.")
    return [[index // of_groups.shape[1], index % of_groups.shape[1]] for index in sorted(order.tolist())]


def overlap(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """Jaccard index of two choices of groups; 1 where both are empty."""
    a, b = ({tuple(group) for group in groups} for groups in (first, second))
    return len(a & b) / len(a | b) if a | b else 1.0


def heat_map(ratios: Ratios, selected: Sequence[Sequence[int]], path: Path) -> None:
    """Draw layers by heads, the chosen groups framed.

    Raises:
        InputError: the picture cannot be written.
    """
    from matplotlib.patches import Rectangle

    figure = new_figure()
    axes = figure.subplots()
    image = axes.imshow(ratios.without_sinks.numpy(), vmin=0, vmax=1, aspect="auto")
    width = ratios.without_sinks.shape[1] // ratios.groups
    for layer, group in selected:
        corner = (group * width - 0.5, layer - 0.5)
        axes.add_patch(Rectangle(corner, width, 1, fill=False, edgecolor="white", linewidth=1.5))
    axes.set(xlabel="query head", ylabel="layer", title="recency ratio; chosen KV groups framed")
    figure.colorbar(image, ax=axes)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): check --plot.") from error
