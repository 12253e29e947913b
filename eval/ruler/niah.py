"""Needles in a haystack: values of keys, hidden in noise, in a text, or among other needles."""

import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from hiermem.eval.haystack import SHORTEST, hidden
from hiermem.eval.ruler.base import NOISE, Example, Family, Place, Sources, scattered
from hiermem.eval.ruler.english import english

# The published sentences; of one value, in the singular.
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
SOME = "Some special magic {kind} are hidden within the following text. "
ONE = "A special magic {kind} is hidden within the following text. "
MEMORIZE = "Make sure to memorize it. I will quiz you about the {kind} afterwards.\n"
QUESTION_SOME = "What are all the special magic {kind} for {keys} mentioned in the provided text?"
QUESTION_ONE = "What is the special magic {kind} for {keys} mentioned in the provided text?"
LEAD_SOME = " The special magic {kind} for {keys} mentioned in the provided text are"
LEAD_ONE = " The special magic {kind} for {keys} mentioned in the provided text is"

DEPTHS = tuple(round(step * 100 / 39) / 100 for step in range(40))
"""Depths of a text at which sentences are hidden, 0 to 1."""


def number(rng: random.Random) -> str:
    """Seven digits."""
    return str(rng.randrange(10**6, 10**7))


def word(rng: random.Random) -> str:
    """An adjective and a noun."""
    return f"{rng.choice(english('adjective'))}-{rng.choice(english('noun'))}"


def identifier(rng: random.Random) -> str:
    """A UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


DRAWS: Mapping[str, Callable[[random.Random], str]] = {
    "numbers": number,
    "words": word,
    "uuids": identifier,
}


def distinct(draw: Callable[[random.Random], str], count: int, rng: random.Random) -> list[str]:
    """So many draws, none of them twice."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw(rng)] = None
    return list(found)


@dataclass(frozen=True)
class Needles(Family):
    """Keys with their values, some of which are asked for.

    Attributes:
        haystack: what they are hidden in: a repeated sentence, a text, or needles with other keys.
        keys: what keys are.
        values: what values are.
        keys_hidden: number of keys.
        values_each: values of each key, a needle each.
        keys_asked: keys that are asked for.
    """

    room: ClassVar[int] = 128

    haystack: Literal["noise", "essay", "needle"]
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    keys_hidden: int = 1
    values_each: int = 1
    keys_asked: int = 1

    @property
    def source(self) -> str:
        return "haystack" if self.haystack == "essay" else ""

    def least(self, place: Place) -> int:
        return SHORTEST if self.source else self.keys_hidden * self.values_each

    def example(self, sources: Sources, place: Place, size: int) -> Example:
        """See `Family`; the unit is a token of the text, a repetition of the noise, or a needle."""
        rng = place.rng()
        others = size if self.haystack == "needle" else 0
        keys = distinct(DRAWS[self.keys], self.keys_hidden + others, rng)
        keys, other_keys = keys[: self.keys_hidden], keys[self.keys_hidden :]
        values = {key: [DRAWS[self.values](rng) for _ in range(self.values_each)] for key in keys}
        needles = [self.needle(key, value) for key in keys for value in values[key]]
        rng.shuffle(needles)
        queries = rng.sample(keys, self.keys_asked)
        if self.haystack == "essay":
            assert sources.haystack is not None
            text = sources.haystack.cut(size, rng).strip() + " "
            context = hidden(text, needles, sorted(rng.sample(DEPTHS, len(needles)))).strip()
        else:
            lines = [NOISE] * size
            if self.haystack == "needle":
                lines = [self.needle(key, DRAWS[self.values](rng)) for key in other_keys]
            context = "\n".join(scattered(lines, needles, rng))
        return self._example(context, queries, tuple(value for key in queries for value in values[key]))

    def needle(self, key: str, value: str) -> str:
        """The sentence of a key and a value."""
        return NEEDLE.format(kind=self.values, key=key, value=value)

    def _example(self, context: str, queries: list[str], answers: tuple[str, ...]) -> Example:
        keys = f"{', '.join(queries[:-1])}, and {queries[-1]}" if len(queries) > 1 else queries[0]
        single = len(answers) == 1
        words = {"kind": self.values.removesuffix("s") if single else self.values, "keys": keys}
        instruction = (ONE if single else SOME) + MEMORIZE
        question, lead = (QUESTION_ONE, LEAD_ONE) if single else (QUESTION_SOME, LEAD_SOME)
        text = instruction.format(**words) + context
        return Example(text, question.format(**words), lead.format(**words), answers)
