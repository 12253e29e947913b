"""When a greedy answer ends: at the end tokens of the checkpoint, and where it begins to loop.

A greedy answer that begins to say a phrase again and again does not stop by itself. Once the same
`LONGEST` tokens or fewer stand there `COPIES` times in a row, and at least `REPEATED` tokens together, it is
stopped, and the phrase is kept once. Nothing else of what a checkpoint sets for `generate` plays a part.
"""

from collections.abc import Sequence
from typing import Any

COPIES, REPEATED, LONGEST = 3, 16, 64


def end_tokens(*sources: Any) -> frozenset[int]:
    """All end tokens that configurations and a tokenizer name."""
    ends: set[int] = set()
    for source in sources:
        named = getattr(source, "eos_token_id", None)
        ends |= set() if named is None else {named} if isinstance(named, int) else set(named)
    return frozenset(ends)


def without_copies(tokens: list[int]) -> list[int] | None:
    """The tokens with the phrase at their end once, where it loops; None where it does not."""
    size = repeated(tokens)
    return tokens[: len(tokens) - (_copies(size) - 1) * size] if size else None


def repeated(tokens: Sequence[int]) -> int:
    """Length of the phrase that the last tokens say again and again; 0 where they do not."""
    for size in range(1, min(LONGEST, len(tokens) // COPIES) + 1):
        compared = (_copies(size) - 1) * size  # with what stands a phrase before
        if compared + size <= len(tokens) and tokens[-compared:] == tokens[-compared - size : -size]:
            return size
    return 0


def _copies(size: int) -> int:
    """How often a phrase of this length must stand there."""
    return max(COPIES, -(-REPEATED // size))
