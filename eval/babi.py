"""The official stories of bAbI (Weston et al., arXiv 1502.05698): facts in their order, then a question."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hiermem.errors import InputError, first_line

TASKS = range(1, 21)
SPLITS = ("train", "test")
PATHS = 19
"""Task whose answers are ways such as ``s,w``: their order counts."""


@dataclass(frozen=True)
class Story:
    """A question and all facts that were told before it.

    Attributes:
        answer: a word, or several with commas between.
        support: places of the facts that the answer follows from, among ``facts``.
    """

    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


def load(folder: Path, task: int, split: str) -> list[Story]:
    """The stories of ``qaN_*_SPLIT.txt``, one for each question.

    Raises:
        InputError: there is no such file, or more than one, or it holds no stories.
    """
    files = sorted(folder.glob(f"qa{task}_*_{split}.txt"))
    if len(files) != 1:
        found = "more than one" if files else "no"
        raise InputError(
            f"There is {found} file qa{task}_*_{split}.txt in {folder}: give the folder of the official bAbI "
            f"stories."
        )
    try:
        stories = list(parse(files[0].read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{files[0]} holds no bAbI stories ({first_line(error)}): give the official file."
        ) from error
    if not stories:
        raise InputError(f"{files[0]} holds no question: give the official file.")
    return stories


def parse(text: str) -> Iterator[Story]:
    """One story for each question; the questions before it are left out, its facts are told from the first.

    Lines are numbered from 1 in each story. Those of questions end in the answer and the numbers of the facts
    that it follows from, with tabs between, or ``|`` in some copies.

    Raises:
        ValueError: a line is of another form.
    """
    facts: dict[int, str] = {}
    last = 0
    for at, line in enumerate(text.splitlines(), start=1):
        match = re.fullmatch(r"(\d+) (.*\S.*)", line)
        number = int(match[1]) if match else 0
        if match is None or number not in (1, last + 1):
            raise ValueError(f"line {at} is not numbered as a story's")
        facts, last = ({} if number == 1 else facts), number
        told, *others = (part.strip() for part in re.split(r"[\t|]", match[2]))
        if not others:
            facts[number] = told
        elif len(others) == 2 and told and others[0]:
            yield Story(tuple(facts.values()), told, others[0], _support(facts, others[1], at))
        else:
            raise ValueError(f"line {at} is no question with its answer and facts")


def _support(facts: dict[int, str], numbers: str, at: int) -> tuple[int, ...]:
    places = {str(number): place for place, number in enumerate(facts)}
    if not numbers.split() or not set(numbers.split()) <= set(places):
        raise ValueError(f"line {at} names facts that were not told")
    return tuple(places[number] for number in numbers.split())


def answer_words(stories: Sequence[Story]) -> frozenset[str]:
    """All words that are an answer, or a part of one, in small letters."""
    return frozenset(word for story in stories for word in _parts(story.answer))


def is_right(output: str, question: str, answer: str, words: frozenset[str], ordered: bool) -> bool:
    """Whether an answer names what is right and nothing else of what may be an answer, as BABILong judges.

    Only the first sentence counts, in small letters, and words that the question names do not. BABILong looks
    for the letters anywhere; here they are whole words.

    Args:
        words: see `answer_words`.
        ordered: whether the order counts, and how often a word is named.
    """
    sentence = re.split(r"\.|<context>|<example>", output.casefold())[0]
    question_words = set(re.findall(r"\w+", question.casefold()))
    named = [word for word in re.findall(r"\w+", sentence) if word in words and word not in question_words]
    parts = _parts(answer)
    return named == parts if ordered else set(named) == set(parts)


def _parts(answer: str) -> list[str]:
    return answer.casefold().split(",")
