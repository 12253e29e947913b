"""BABILong (Kuratov et al., arXiv 2406.10149): the facts of a bAbI story between the sentences of a book.

As published: the official stories; a story for each question, with all facts before it; facts in their
order at places drawn at random between sentences; a text of so many tokens with the facts, or, for a length
of 0, the facts alone; a greedy answer of at most 20 tokens, judged by its first sentence
(`hiermem.eval.babi.is_right`).

What differs: the book is one that is given, not all of PG-19; places are drawn by characters, not by
sentences; an answer is judged by whole words; one short instruction for all tasks stands behind the
question, where the published prompts have one for each task with worked examples before the text. The same
stories are asked at every length: those that fit the shortest.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hiermem.documents import read_document
from hiermem.errors import InputError
from hiermem.eval import babi
from hiermem.eval.babi import Story
from hiermem.eval.haystack import SHORTEST, Haystack, hidden
from hiermem.eval.tasks.base import option, register
from hiermem.eval.tasks.documents import OURS, Document, Question
from hiermem.eval.tasks.grid import GridTask, Place

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.answering import Response
    from hiermem.model import HierMemModel

INSTRUCTION = "Answer with one word from the passages. What happened last counts."


class Texts(NamedTuple):
    """A book, and the stories of each task."""

    book: str
    stories: dict[int, list[Story]]


@dataclass(frozen=True, kw_only=True)
class StoryQuestion(Question):
    """The question of a story.

    Attributes:
        words: all that may be answers in its task.
        ordered: whether the order of an answer's parts counts.
    """

    words: frozenset[str]
    ordered: bool


@register
@dataclass(frozen=True, kw_only=True)
class BabiLong(GridTask):
    """BABILong: the official bAbI stories, each with its facts scattered in a book.

    A text is read for every question, as published, so time grows with --limit times the lengths.

    Examples:

        hiermem eval babi-long --haystack book.txt --data babi --lengths 0,1000,8000 --limit 20 --seed 1

        hiermem eval babi-long --haystack book.txt --data babi --tasks 1,7,15 --lengths 0 --method full
    """

    name = "babi-long"
    title = "BABILong"
    across = "tasks"
    by = "task"
    max_new_tokens = 20

    haystack: str = option(help="Text file that the facts are scattered in.", document=True)
    data: Path = option(help="Folder of the official stories, qaN_*_train.txt and qaN_*_test.txt.")
    split: str = option("test", help="train or test.")
    tasks: tuple[int, ...] = option((1, 2, 3, 4, 5), help="Numbers of bAbI tasks, 1 to 20, comma-separated.")
    lengths: tuple[int, ...] = option(
        (0, 1000, 8000), help="Text lengths in tokens, comma-separated; 0: the facts alone."
    )
    limit: int = option(20, help="Texts, each with one question, of a task at a length.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in babi.SPLITS:
            raise InputError(f"There is no split {self.split!r}: choose one of {', '.join(babi.SPLITS)}.")
        for task in self.tasks:
            if task not in babi.TASKS:
                raise InputError(f"There is no bAbI task {task}: --tasks takes numbers from 1 to 20.")

    def configure(self, config: HierMemConfig) -> HierMemConfig:
        """The same with this task's instruction."""
        return super().configure(config).with_asking(instruction=INSTRUCTION)

    def load(self, config: HierMemConfig) -> Texts:
        """The book and all stories of the tasks."""
        stories = {task: babi.load(self.data, task, self.split) for task in self.tasks}
        return Texts(read_document(self.haystack), stories)

    def texts(self, data: Texts) -> Iterable[str]:
        return [data.book, *(str(story) for stories in data.stories.values() for story in stories)]

    def documents(self, model: HierMemModel, data: Texts) -> list[Document]:
        """The texts of every task and length, each with its question."""
        haystack = Haystack(model.tokenizer, data.book)
        drawn = {task: self._drawn(haystack, task, stories) for task, stories in data.stories.items()}
        words = {task: babi.answer_words(stories) for task, stories in data.stories.items()}
        return [
            self._document(haystack, place, drawn[place.value][place.index], words[place.value])
            for place in self.places()
        ]

    def _drawn(self, haystack: Haystack, task: int, stories: Sequence[Story]) -> list[Story]:
        """Stories of a task in a seeded order, with facts that leave room for the book at every length."""
        shortest = min((length for length in self.lengths if length), default=None)
        shuffled = random.Random(f"{self.seed}/{task}").sample(stories, len(stories))
        drawn: list[Story] = []
        for story in shuffled:
            if shortest is None or haystack.tokens(" ".join(story.facts)) + SHORTEST <= shortest:
                drawn.append(story)
            if len(drawn) == self.limit:
                return drawn
        fit = "" if shortest is None else f" whose facts leave room for a book in {shortest} tokens"
        raise InputError(f"Task {task} has {len(drawn)} stories{fit}: lower --limit or raise --lengths.")

    def _document(self, haystack: Haystack, place: Place, story: Story, words: frozenset[str]) -> Document:
        text, spans = scattered(haystack, story.facts, place.length, random.Random(f"{self.seed}/{place}"))
        question = StoryQuestion(
            key=str(place),
            text=story.question,
            answers=(story.answer,),
            evidence=tuple(spans[fact] for fact in story.support),
            about=self.about(place),
            words=words,
            ordered=place.value == babi.PATHS,
        )
        return Document(text, [question])

    def is_right(self, question: Question, output: str) -> bool:
        assert isinstance(question, StoryQuestion)
        (answer,) = question.answers
        return babi.is_right(output, question.text, answer, question.words, question.ordered)

    def scores(self, question: Question, response: Response) -> dict[str, Any]:
        """Whether the answer is right and, of hiermem, whether the sources hold all facts that it needs."""
        scores = super().scores(question, response)
        if self.method in OURS:
            sources = [(source.start, source.end) for source in response.sources]
            scores["recalled"] = all(
                any(first <= start and end <= last for first, last in sources)
                for start, end in question.evidence
            )
        return scores


def scattered(
    haystack: Haystack, facts: Sequence[str], length: int, rng: random.Random
) -> tuple[str, list[tuple[int, int]]]:
    """Facts in their order between the sentences of a piece of the haystack, with the span of each.

    Args:
        length: of the text in tokens, with the facts; 0 gives the facts alone.

    Raises:
        InputError: the haystack is too short.
    """
    text = haystack.cut(length - haystack.tokens(" ".join(facts)), rng) if length else ""
    depths = sorted(rng.random() for _ in facts)
    whole = hidden(text, facts, depths).strip()
    spans, at = [], 0
    for fact in facts:
        start = whole.index(fact, at)
        at = start + len(fact)
        spans.append((start, at))
    return whole, spans
