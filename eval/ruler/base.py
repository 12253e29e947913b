"""Interface of a family of RULER tasks, and the search for the largest example that fits a length."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from hiermem.errors import InputError

if TYPE_CHECKING:
    from hiermem.eval.haystack import Haystack
    from hiermem.eval.qa_data import Pool

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The published sentence of a haystack that says nothing."""
PROBE = 64
"""Units of haystack by which the tokens of one are measured."""
TRIES = 8


@dataclass(frozen=True)
class Example:
    """A document, a question about it, and what the answer must hold.

    Attributes:
        text: the instruction and the context.
        lead: how the answer begins, as published.
        answers: references.
    """

    text: str
    question: str
    lead: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Which example of which run: all that is drawn at random follows from it.

    Attributes:
        length: tokens of the prompt and the room for its answer.
        index: of the example among those of its task and length.
    """

    seed: int
    task: str
    length: int
    index: int

    def rng(self) -> random.Random:
        """The same draws at every call."""
        return random.Random(f"{self.seed}/{self.task}/{self.length}/{self.index}")


@dataclass(frozen=True)
class Sources:
    """Texts that examples are made of, beside what is drawn at random.

    Attributes:
        haystack: text in place of the published essays.
        pools: paragraphs and questions by the name of their data set.
    """

    haystack: "Haystack | None" = None
    pools: "Mapping[str, Pool]" = field(default_factory=dict)


class Family(ABC):
    """A kind of task; its settings are its fields.

    Attributes:
        room: tokens that are generated.
        any_answer: whether one reference is enough; otherwise the score is the share of those that are found.
    """

    room: ClassVar[int]
    any_answer: ClassVar[bool] = False

    @property
    def source(self) -> str:
        """Its need beside what is drawn: a text ("haystack"), a data set by its name, or nothing."""
        return ""

    @abstractmethod
    def least(self, place: Place) -> int:
        """Smallest size that an example may have."""

    @abstractmethod
    def example(self, sources: Sources, place: Place, size: int) -> Example:
        """An example with ``size`` units of haystack: tokens, sentences, words or paragraphs."""


def scattered(lines: list[str], sentences: list[str], rng: random.Random) -> list[str]:
    """``lines`` with the sentences between them in their order, at places drawn at random."""
    places = sorted(rng.sample(range(len(lines)), len(sentences)))
    found = list(lines)
    for place, sentence in reversed(list(zip(places, sentences, strict=True))):
        found.insert(place, sentence)
    return found


def fitted(
    family: Family, sources: Sources, place: Place, tokens: Callable[[Example], int]
) -> tuple[Example, int]:
    """The largest example found whose prompt and room for an answer fit the length, and their tokens.

    Tokens are almost proportional to the size: a few examples are tokenised, whatever the length.

    Args:
        tokens: counts those of the prompt.

    Raises:
        InputError: the smallest does not fit.
    """

    def sized(size: int) -> tuple[Example, int]:
        example = family.example(sources, place, size)
        return example, tokens(example) + family.room

    least = family.least(place)
    best, used = sized(least)
    if used > place.length:
        raise InputError(
            f"An example of {place.task} takes at least {used} tokens with its prompt and room for its "
            f"answer: give --length {used} or more."
        )
    if place.length - used < 1:
        return best, used
    each = max((sized(least + PROBE)[1] - used) / PROBE, 0.1)
    size = least + math.floor((place.length - used) / each)
    for _ in range(TRIES):
        example, found = sized(size)
        if used < found <= place.length:
            best, used = example, found
        step = math.floor((place.length - found) / each)
        if not step:
            break
        size = max(size + step, least)
    return best, used
