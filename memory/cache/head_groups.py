"""Budgets of KV heads: which heads need a long memory is a property of the backbone.

Heads of one layer that keep equally many tokens make one group, whose cache is one rectangle; a layer whose
heads are all alike is one group.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from hiermem.errors import InputError
from hiermem.memory.attention import Heads, numbers
from hiermem.memory.cache.layer import LayerGeometry

LEAST = 16
"""Every head keeps at least the sinks and the budget divided by this: 32 tokens of a budget of 512."""

STEP = 32
"""Tokens beyond that are kept in multiples of the budget divided by this: of 16, where the budget is 512.
So neighbouring heads often keep equally many and make one group."""

HeadBudgets = Sequence[Sequence[float]]


@dataclass(frozen=True)
class HeadGroup:
    """KV heads of one layer, without others between them that keep a cache, that keep equally many tokens.

    Attributes:
        layer: index of their attention layer.
        heads: which of the layer's KV heads they are.
        budget: tokens that each keeps after a decision.
    """

    layer: int
    heads: Heads
    budget: int

    def size(self, heads: int) -> int:
        """Number of them, of a layer's ``heads``."""
        return len(numbers(self.heads, heads))


def plan_head_groups(
    geometries: Sequence[LayerGeometry],
    budget: int,
    shares: HeadBudgets | None,
    sinks: int,
    replaced: Collection[tuple[int, int]] = (),
) -> tuple[HeadGroup, ...]:
    """All groups, layer by layer.

    Args:
        budget: tokens that a head keeps in the mean.
        shares: what every head keeps in proportion to the others, layers x KV heads; None: all alike.
        replaced: pairs of layer and KV head that keep nothing at all.

    Raises:
        InputError: the shares are of a backbone with other layers or heads.
    """
    heads = [shape.heads for shape in geometries]
    if shares is not None and [len(row) for row in shares] != heads:
        raise InputError(
            f"The head shares are of {len(shares)} layers with {len(shares[0])} KV heads, the backbone has "
            f"{len(heads)} with {heads[0]}: calibrate them for this backbone."
        )
    if shares is None and not replaced:
        return tuple(HeadGroup(layer, slice(None), budget) for layer in range(len(geometries)))
    kept = [
        [head for head in range(count) if (layer, head) not in replaced] for layer, count in enumerate(heads)
    ]
    if shares is None:
        budgets = [[budget] * len(heads) for heads in kept]
    else:
        budgets = head_budgets(kept_shares(shares, replaced), budget, sinks)
    groups = []
    for layer, row in enumerate(budgets):
        for tokens, run in groupby(zip(row, kept[layer], strict=True), key=lambda pair: pair[0]):
            groups.append(HeadGroup(layer, _index([head for _, head in run]), tokens))
    return tuple(groups)


def kept_shares(shares: HeadBudgets, replaced: Collection[tuple[int, int]]) -> HeadBudgets:
    """The shares of the heads that keep a cache."""
    return [
        [share for head, share in enumerate(row) if (layer, head) not in replaced]
        for layer, row in enumerate(shares)
    ]


def _index(heads: list[int]) -> Heads:
    """The heads as a slice where they are neighbours, which copies nothing."""
    first, end = heads[0], heads[-1] + 1
    return slice(first, end) if end - first == len(heads) else heads


def head_budgets(shares: HeadBudgets, budget: int, sinks: int) -> list[list[int]]:
    """Tokens each head keeps: in proportion to its share, at least a few, at most ``budget`` in the mean."""
    least, step = min(sinks + max(budget // LEAST, 1), budget), max(budget // STEP, 1)
    flat = [share for row in shares for share in row]
    if not any(flat):
        return [[budget] * len(row) for row in shares]
    room = (budget - least) * len(flat)
    low, high = 0.0, (room + least) / max(flat)
    for _ in range(64):  # bisection: what is spent beyond the least grows with the factor
        factor = (low + high) / 2
        spent = sum(max(share * factor - least, 0.0) for share in flat)
        low, high = (factor, high) if spent <= room else (low, factor)
    return [[least + int(max(share * low - least, 0.0)) // step * step for share in row] for row in shares]


def budget_that_keeps(shares: HeadBudgets | None, tokens: int, kept: int, sinks: int) -> int:
    """The largest budget with which heads keep at most ``kept`` of a text's ``tokens`` in the mean.

    A head whose part of the budget exceeds the text keeps the whole text and leaves the rest unused, so the
    budget may be larger than what is kept.
    """
    if shares is None:
        return kept
    low, high = 1, LEAST * tokens  # from there on every head keeps all
    while low < high:
        budget = (low + high + 1) // 2
        held = [min(limit, tokens) for row in head_budgets(shares, budget, sinks) for limit in row]
        low, high = (budget, high) if sum(held) <= kept * len(held) else (low, budget - 1)
    return low
