"""Heavy hitters and the newest tokens (H2O, arXiv 2306.14048).

The sum of all attention that a token ever received, from every query, without decay. As published but for
three things: the query heads of a KV head are averaged, as grouped queries need; tokens leave every
`update_interval` tokens in place of one by one; and sinks are protected, as with every policy here.
"""

from dataclasses import dataclass
from typing import ClassVar

from hiermem.memory.policies.attention import AttentionPolicy


@dataclass(frozen=True)
class H2OPolicy(AttentionPolicy):
    """Received attention that never fades and counts from the token itself on; it has no settings."""

    decay: float = 1.0
    near: int = 0

    name: ClassVar[str] = "h2o"
    stride: ClassVar[int] = 1
    supplied: ClassVar[frozenset[str]] = frozenset({"sinks", "decay", "near"})
