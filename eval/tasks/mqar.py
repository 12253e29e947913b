"""Multi-query associative recall (MQAR; Arora et al., Zoology, arXiv 2312.04927), in words.

As published: a text begins with key-value pairs, of words that are all different; then come random words;
every key is asked for, and the score is the share of right values.

What differs: the published models are trained from scratch on token ids, ours are pretrained, so keys,
values and other words are made-up words of three syllables, and a pair is a line ``key: value``; each key
is asked for by itself behind the text, with ``key:`` before the answer, not at distances drawn from a power
law.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval.tasks.base import option, register
from hiermem.eval.tasks.documents import Document, Question
from hiermem.eval.tasks.grid import GridTask, Place
from hiermem.text import encode

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

SYLLABLES = tuple(map("".join, product("bdfgklmnprstvz", "aeiou")))
MOST = 4096
"""Pairs of a text at most; there are far more words."""


@register
@dataclass(frozen=True, kw_only=True)
class Mqar(GridTask):
    """Multi-query associative recall: pairs of made-up words, random words, then every key is asked for.

    Examples:

        hiermem eval mqar --pairs 8,32 --lengths 0,1000,8000 --limit 5 --seed 1

        hiermem eval mqar --pairs 64 --lengths 2000 --method full --json
    """

    name = "mqar"
    title = "Multi-query associative recall"
    across = "pairs"
    by = "pairs"
    max_new_tokens = 16

    pairs: tuple[int, ...] = option((8, 32), help="Key-value pairs of a text, comma-separated.")
    lengths: tuple[int, ...] = option(
        (0, 1000, 8000), help="Text lengths in tokens, comma-separated; 0: the pairs alone."
    )
    limit: int = option(5, help="Texts of so many pairs and of a length.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= min(self.pairs) <= max(self.pairs) <= MOST:
            raise InputError(f"--pairs takes numbers from 1 to {MOST}.")

    def documents(self, model: HierMemModel, data: None) -> list[Document]:
        """The texts of every number of pairs and length, each with a question for every key."""
        return [self._document(model.tokenizer, place) for place in self.places()]

    def _document(self, tokenizer: Any, place: Place) -> Document:
        rng = random.Random(f"{self.seed}/{place}")
        words = distinct_words(2 * place.value, rng)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        lines = "".join(f"{key}: {value}\n" for key, value in pairs)
        taken = len(encode(tokenizer, lines))
        filler = other_words(tokenizer, place.length - taken, set(words), rng)
        if place.length and not filler:
            raise InputError(
                f"{place.value} pairs take {taken} tokens, so no text of {place.length} "
                f"can be made: raise --lengths, or give 0 for the pairs alone."
            )
        questions = [
            Question(
                key=f"{place}/{at}",
                text=f"What is the value of {key}?",
                lead=f"{key}:",
                answers=(value,),
                about=self.about(place),
            )
            for at, (key, value) in enumerate(rng.sample(pairs, len(pairs)))
        ]
        return Document(f"{lines}\n{' '.join(filler)}".strip(), questions)

    def is_right(self, question: Question, output: str) -> bool:
        """Whether the first word is the value."""
        word = re.search(r"\w+", output.casefold())
        return word is not None and word.group() in question.answers


def new_word(rng: random.Random) -> str:
    """A made-up word."""
    return "".join(rng.choices(SYLLABLES, k=3))


def distinct_words(count: int, rng: random.Random) -> list[str]:
    """So many made-up words, none twice."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[new_word(rng)] = None
    return list(words)


def other_words(tokenizer: Any, tokens: int, taken: Collection[str], rng: random.Random) -> list[str]:
    """So many tokens of words that are not taken; no word where there is no room for one."""
    drawn: list[str] = []
    while tokens > 0:
        word = new_word(rng)
        if word not in taken:
            drawn.append(word)
            tokens -= len(encode(tokenizer, f" {word}"))
    return drawn
