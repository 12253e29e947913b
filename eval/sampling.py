"""Parts of a data set that stand for the whole."""

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def stratified(
    items: Sequence[Item], kind: Callable[[Item], Hashable], limit: int | None, seed: int
) -> list[Item]:
    """At most ``limit`` items in the order that they have, each kind as often as among all of them.

    Lists are often ordered by kind, as PubMedQA's test questions are: their first ones say little about the
    rest. Where shares are not whole numbers, the largest remainders are rounded up.

    Args:
        limit: None takes all.
        seed: of the draw.
    """
    if limit is None or limit >= len(items):
        return list(items)
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        places[kind(item)].append(place)
    counts = {group: limit * len(found) // len(items) for group, found in places.items()}
    remainders = sorted(places, key=lambda group: -(limit * len(places[group]) % len(items)))
    for group in remainders[: limit - sum(counts.values())]:
        counts[group] += 1
    rng = random.Random(seed)
    chosen = [place for group, found in places.items() for place in rng.sample(found, counts[group])]
    return [items[place] for place in sorted(chosen)]
