"""Aggregation: the most common words of a numbered list, the most frequent words of a coded text."""

import math
import random
import string
from dataclasses import dataclass
from typing import ClassVar

from hiermem.eval.ruler.base import Example, Family, Place, Sources
from hiermem.eval.ruler.english import english

COMMON_INSTRUCTION = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the "
    "ones that appear most often.\n"
)
COMMON_QUESTION = "What are the 10 most common words in the above list?"
COMMON_LEAD = " Answer: The top 10 words that appear most often in the list are:"

FREQUENT_INSTRUCTION = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. "
)
FREQUENT_QUESTION = (
    "Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
FREQUENT_LEAD = " Answer: According to the coded text above, the three most frequently appeared words are:"
DOTS = "..."
"""The most frequent word of a coded text, which is no word."""


def numbered(words: list[str]) -> str:
    """``1. first 2. second`` and so on."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


@dataclass(frozen=True)
class List:
    """How a list of words is made.

    Attributes:
        common: how often each common word stands in it.
        others: how often each other word does.
    """

    common: int
    others: int


@dataclass(frozen=True)
class CommonWords(Family):
    """Ten words that stand in a list more often than all others; an example with its answer is shown first.

    Attributes:
        words: number of common words.
        whole: the list that is asked about, and ``shown`` that of the example, with words in all.
        short: both of lengths below 4,096 tokens.
    """

    room: ClassVar[int] = 120

    words: int = 10
    whole: List = List(30, 3)
    shown: tuple[List, int] = (List(10, 3), 40)
    short: List = List(6, 1)
    short_shown: tuple[List, int] = (List(3, 1), 20)

    def least(self, place: Place) -> int:
        return self.words

    def example(self, sources: Sources, place: Place, size: int) -> Example:
        """See `Family`; the unit is a word, which stands in the list several times."""
        rng, short = place.rng(), place.length < 4096
        example_list, example_size = self.short_shown if short else self.shown
        text, words = self._list(example_list, example_size, rng)
        shown = f"{text}\nQuestion: {COMMON_QUESTION}{COMMON_LEAD} {numbered(words)}"
        text, words = self._list(self.short if short else self.whole, size, rng)
        return Example(f"{shown}\n{text}", COMMON_QUESTION, COMMON_LEAD, tuple(words))

    def _list(self, repeats: List, size: int, rng: random.Random) -> tuple[str, list[str]]:
        """The text of a list of ``size`` different words, and the common ones."""
        chosen = different(size, rng)
        common, others = chosen[: self.words], chosen[self.words :]
        words = common * repeats.common + others * repeats.others
        rng.shuffle(words)
        return COMMON_INSTRUCTION + numbered(words), common


def different(count: int, rng: random.Random) -> list[str]:
    """So many different words; more than the lists hold are pairs of an adjective and a noun."""
    nouns, adjectives = english("noun"), english("adjective")
    every = sorted({*nouns, *adjectives, *english("verb")})
    found = rng.sample(every, min(count, len(every)))
    pairs = rng.sample(range(len(adjectives) * len(nouns)), count - len(found))
    return found + [f"{adjectives[pair // len(nouns)]}-{nouns[pair % len(nouns)]}" for pair in pairs]


@dataclass(frozen=True)
class FrequentWords(Family):
    """Made-up words whose frequency falls with their rank by Zipf's law; the three most frequent are asked.

    Attributes:
        letters: of a word.
        tokens_each: tokens of the whole text for each word of the vocabulary.
    """

    room: ClassVar[int] = 50

    letters: int = 6
    tokens_each: int = 50
    zeta: ClassVar[float] = math.pi**2 / 6
    """The zeta function of the exponent, 2: the sum of all frequencies."""

    def least(self, place: Place) -> int:
        return 64  # of which even the fourth word, the last that is asked for, is there twice

    def example(self, sources: Sources, place: Place, size: int) -> Example:
        """See `Family`; the unit is a word."""
        rng = place.rng()
        count = max((place.length - self.room) // self.tokens_each, 4)
        vocabulary: dict[str, None] = {DOTS: None}
        while len(vocabulary) < count:
            vocabulary["".join(rng.choices(string.ascii_lowercase, k=self.letters))] = None
        ranked = list(vocabulary)
        words = [
            word for rank, word in enumerate(ranked, 1) for _ in range(int(size / (rank**2 * self.zeta)))
        ]
        rng.shuffle(words)
        text = FREQUENT_INSTRUCTION + " ".join(words)
        return Example(text, FREQUENT_QUESTION, FREQUENT_LEAD, tuple(ranked[1:4]))
