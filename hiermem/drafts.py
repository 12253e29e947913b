"""Drafts of the next tokens, copied from where the last ones stood before (prompt lookup decoding).

An answer that quotes its passages is mostly a copy of them: what followed the same few tokens there is a
good guess of what follows here. A guess costs a column of a pass that is made anyway; a right one saves a
pass. It is speculative decoding (arXiv 2211.17192) with the prompt in the place of the smaller model.
"""

from collections.abc import Sequence

LENGTH = 8
"""Most tokens of a draft; this and the next two were chosen on answers to validation questions
(docs/lab-notes/machine.md)."""

LONGEST, SHORTEST = 6, 2
"""Most and fewest last tokens that are looked up."""


class PromptLookup:
    """Tokens of one text so far, and where each few of them stood last.

    Args:
        tokens: of the prompt.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in the next tokens."""
        for token in tokens:
            # What stands at the very end is followed by nothing yet: it is found once something is.
            for size in range(SHORTEST, min(LONGEST, len(self._tokens)) + 1):
                self._after[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self, most: int = LENGTH) -> list[int]:
        """The tokens that followed where the longest run of last ones stood before, at most ``most``."""
        for size in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            at = self._after.get(tuple(self._tokens[-size:]))
            if at is not None:
                return self._tokens[at : at + max(most, 0)]
        return []
