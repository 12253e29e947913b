"""When a greedy answer ends: at the end tokens of the checkpoint, and where it begins to loop.

A greedy answer that begins to say a phrase again and again does not stop by itself. Once the same
`LONGEST` tokens or fewer stand there `COPIES` times in a row, and at least `REPEATED` tokens together, it is
stopped, and the phrase is kept once. Nothing else of what a checkpoint sets for `generate` plays a part.
"""

from collections.abc import Collection, Sequence
from typing import Any

COPIES, REPEATED, LONGEST = 3, 16, 64


class Continuation:
    """Tokens that continue a prompt, one by one, up to where they end.

    Args:
        ends: tokens that end them.
        limit: most tokens.

    Attributes:
        tokens: so far, without the one that ended them; a phrase that loops stands there once.
        ended: whether they ended by themselves.
    """

    def __init__(self, ends: Collection[int], limit: int) -> None:
        self._ends, self._limit = ends, limit
        self.tokens: list[int] = []
        self.ended = self._loops = False

    @property
    def going(self) -> bool:
        """Whether they want another token."""
        return not (self.ended or self._loops) and len(self.tokens) < self._limit

    def add(self, token: int) -> None:
        """Take the next token."""
        if token in self._ends:
            self.ended = True
            return
        self.tokens.append(token)
        if (kept := without_copies(self.tokens)) is not None:
            self.tokens, self._loops = kept, True

    @property
    def settled(self) -> list[int]:
        """The first of them that stay whatever follows."""
        return self.tokens[: settled(self.tokens)] if self.going else self.tokens


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


def settled(tokens: Sequence[int]) -> int:
    """How many of the first tokens `without_copies` will keep, whatever follows.

    Those that may belong to the second time of a phrase are left out.
    """
    sizes = range(1, min(LONGEST, len(tokens) - 1) + 1)
    return len(tokens) - max((_matching(tokens, size) for size in sizes), default=0)


def _matching(tokens: Sequence[int], size: int) -> int:
    """How many of the last tokens are those that stand ``size`` before."""
    count = 0
    while count + size < len(tokens) and tokens[-1 - count] == tokens[-1 - count - size]:
        count += 1
    return count


def _copies(size: int) -> int:
    """How often a phrase of this length must stand there."""
    return max(COPIES, -(-REPEATED // size))
