"""What evictors are judged by: texts that are read and pruned, and what must then be predicted.

Each task draws its prompts from train data with a seed; the same number always means the same prompt.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hiermem.eval.haystack import Haystack
from hiermem.eval.tasks import needles, pg19, pubmedqa
from hiermem.prompts import split_prompt
from hiermem.text import encode, from_beginning


@dataclass(frozen=True)
class FitnessPrompt:
    """One judgement.

    Attributes:
        key: task and number, such as `needles/3`.
        text: token ids that are read; then the cache is pruned.
        rest: token ids that follow.
        scored: how many last ones of them count.
        keep: share of ``text`` that each KV head keeps in the mean.
    """

    key: str
    text: list[int]
    rest: list[int]
    scored: int
    keep: float


class TrainTexts:
    """Train data, read once.

    Args:
        tokenizer: of the backbone.
        data: folder that holds `pg19` and `pubmedqa` in their official layouts.
        instruction: what follows a question.
        length: tokens of a text.
    """

    def __init__(self, tokenizer: Any, data: Path, instruction: str, length: int = 2000) -> None:
        self.tokenizer, self.data, self.instruction, self.length = tokenizer, data, instruction, length

    @cached_property
    def books(self) -> list[Haystack]:
        texts = pg19.books(self.data / "pg19", "train", None, None)
        return [Haystack(self.tokenizer, text) for text in texts.values()]

    @cached_property
    def abstracts(self) -> list[pubmedqa.Item]:
        return pubmedqa.load(self.data / "pubmedqa", "train")

    def encoded(self, text: str) -> list[int]:
        """Token ids of a text that goes on after another."""
        return encode(self.tokenizer, text)

    def answered(
        self, key: str, text: str, question: str, lead: str, answer: str, keep: float
    ) -> FitnessPrompt:
        """A question about a text, and its answer after a lead."""
        begun, after = split_prompt(self.tokenizer, text, question, self.instruction)
        target = self.encoded(answer)
        rest = replace(after, lead=lead).ids(self.tokenizer) + target
        return FitnessPrompt(key, begun.ids(self.tokenizer, begins=True), rest, len(target), keep)


def _needle(source: TrainTexts, number: int, rng: random.Random) -> FitnessPrompt:
    """Four codes in a book, one of them asked for; a quarter or an eighth of the text is kept."""
    book = source.books[number % len(source.books)]
    made = needles.examples([book], source.length, 1, seed=rng.randrange(2**32))[0]
    keep = rng.choice((0.25, 0.125))
    return source.answered(f"needles/{number}", made.text, made.question, made.lead, made.answer, keep)


def _continuation(source: TrainTexts, number: int, rng: random.Random, scored: int = 96) -> FitnessPrompt:
    """A book goes on after twice the length; an eighth of it is kept."""
    book = source.books[number % len(source.books)]
    ids = source.encoded(book.cut(2 * source.length + scored, rng))
    text = from_beginning(source.tokenizer, ids[:-scored])
    return FitnessPrompt(f"continuation/{number}", text, ids[-scored:], scored, 0.125)


def _abstracts(source: TrainTexts, number: int, rng: random.Random, together: int = 8) -> FitnessPrompt:
    """Several abstracts, one question and its long answer; half of the text is kept."""
    items = rng.sample(source.abstracts, together)
    asked = rng.choice(items)
    text = pubmedqa.fused(items).text
    return source.answered(f"abstracts/{number}", text, asked.question, "", f" {asked.long_answer}", 0.5)


TASKS: dict[str, Callable[[TrainTexts, int, random.Random], FitnessPrompt]] = {
    "needles": _needle,
    "continuation": _continuation,
    "abstracts": _abstracts,
}


def prompt(source: TrainTexts, task: str, number: int, seed: int) -> FitnessPrompt:
    """Prompt ``number`` of a task."""
    return TASKS[task](source, number, random.Random(f"{seed}/{task}/{number}"))
