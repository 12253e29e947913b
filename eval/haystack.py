"""Sentences hidden in real text: shared by every task that looks for needles."""

import random
import re
from collections.abc import Sequence
from typing import Any

from hiermem.errors import InputError
from hiermem.text import encode, encode_with_spans

_SENTENCE_END = re.compile(r"[.!?][\"'”’]?\s+")
SHORTEST = 32
"""Tokens of the shortest piece."""


class Haystack:
    """A long text from which pieces of any length can be cut.

    Attributes:
        text: the whole text.
        spans: character span of each of its tokens.
    """

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text, self._tokenizer = text, tokenizer
        self.spans = encode_with_spans(tokenizer, text)[1]

    def tokens(self, text: str) -> int:
        """How many tokens ``text`` has."""
        return len(encode(self._tokenizer, text))

    def cut(self, length: int, rng: random.Random) -> str:
        """A piece of ``length`` tokens from a place drawn at random.

        Raises:
            InputError: the text is shorter.
        """
        if len(self.spans) < SHORTEST:
            raise InputError(f"The haystack has {len(self.spans)} tokens: give one of at least {SHORTEST}.")
        if length < SHORTEST or len(self.spans) < length:
            raise InputError(
                f"The haystack has {len(self.spans)} tokens, so no text of {length} tokens can be cut: "
                f"give lengths from {SHORTEST} to {len(self.spans)}."
            )
        first = rng.randrange(len(self.spans) - length + 1)
        return self.text[self.spans[first][0] : self.spans[first + length - 1][1]]


def hidden(text: str, sentences: Sequence[str], depths: Sequence[float]) -> str:
    """``text`` with each sentence at the end of another, at about its depth (0 to 1, ascending)."""
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    places = [min(ends, key=lambda end: abs(end - depth * len(text))) for depth in depths]
    pieces, at = [], 0
    for place, sentence in zip(places, sentences, strict=True):
        pieces += [text[at:place], sentence.strip() + " "]
        at = place
    return "".join([*pieces, text[at:]])
