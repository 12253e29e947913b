"""Training data: pieces of books, questions after their abstracts, and texts with facts to be asked for.

A sample is a function of seed and number alone. So any process can draw any sample, each draws others, and
training that was stopped goes on with the very samples that would have come.
"""

import random
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiermem.asking_config import AskConfig
from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.haystack import SHORTEST
from hiermem.eval.tasks import needles, pg19, pubmedqa
from hiermem.prompts import prompt_text
from hiermem.settings import check_settings
from hiermem.text import beginning, encode
from hiermem.training.batches import Batch, Sample, collated
from hiermem.training.facts import CODES, check_kinds, with_facts

KINDS = ("books", "questions", "facts", "abstracts")
SLACK = 16
"""Tokens by which a text may grow where it is cut and codes are put in."""

TRIES = 4
"""Samples that are looked through for each one of full length."""


@dataclass(frozen=True)
class SampleConfig:
    """Settings of the training data.

    Attributes:
        books: share of the samples that are pieces of books.
        questions: share that are questions after their abstracts, packed until a sample is full.
        facts: share that are pieces of books in which facts are hidden, all of them asked for at the end.
        abstracts: share that are PubMedQA's questions, abstracts and long answers, one after the other, as a
            text to read.
        kinds: of these facts, of `hiermem.training.facts.KINDS`, one in a text.
        tokens: tokens of a sample.
        streamed: books that are taken of a dataset on the hub, its first ones.
        held_out: questions at the end of the training half that are never trained on; without books, they
            are the validation samples.
        seed: seed of all samples.
    """

    books: float = 1.0
    questions: float = 0.0
    facts: float = 0.0
    abstracts: float = 0.0
    kinds: tuple[str, ...] = (CODES,)
    tokens: int = 2048
    streamed: int = 256
    held_out: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        check_kinds(self.kinds)
        if (
            min(self.shares) < 0
            or sum(self.shares) <= 0
            or min(self.tokens - 1, self.streamed, self.held_out) < 1
        ):
            raise InputError(
                "Samples need shares that are not negative and not all 0, at least 2 tokens, one book and "
                "one question held out."
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares in the order of `KINDS`."""
        return self.books, self.questions, self.facts, self.abstracts

    def of_kind(self, kind: str) -> "SampleConfig":
        """The same settings with samples of one kind, of `KINDS`, alone."""
        shares: dict[str, Any] = {name: float(name == kind) for name in KINDS}
        return replace(self, **shares)


class TrainingDataset:
    """Samples by number.

    Args:
        tokenizer: the backbone's.
        data: folder that holds `pg19` and `pubmedqa` in their official layouts, with what the shares need, or
            the name of a dataset of books on the hub.
        config: settings of the samples.
        split: `train` or `validation`; questions and abstracts of both are from the training half.
    """

    def __init__(self, tokenizer: Any, data: Path, config: SampleConfig, split: str = "train") -> None:
        self.tokenizer, self.data, self.config, self.split = tokenizer, data, config, split
        self._books = books(data, split, config.streamed) if config.books or config.facts else {}
        self._book = lru_cache(maxsize=64)(self._encoded_book)

    def __getitem__(self, number: int) -> Sample:
        rng = random.Random(f"{self.config.seed}/{self.split}/{number}")
        kind = rng.choices(KINDS, self.config.shares)[0]
        make = dict(zip(KINDS, (self._piece, self._questions, self._facts, self._abstracts), strict=True))
        return make[kind](rng)

    def of_kind(self, kind: str) -> "TrainingDataset":
        """Samples of one kind alone."""
        twin = copy(self)
        twin.config = self.config.of_kind(kind)
        return twin

    def full(self, count: int, tokens: int) -> list[list[int]]:
        """The beginnings of the first samples that have at least so many tokens.

        Raises:
            InputError: among the first ones there are too few.
        """
        tried = range(TRIES * count)
        texts = [ids[:tokens] for number in tried if len(ids := self[number].ids) >= tokens][:count]
        if len(texts) < count:
            raise InputError(
                f"Of {len(tried)} samples only {len(texts)} have {tokens} tokens, {count} are needed: give "
                f"longer texts."
            )
        return texts

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Several samples as one rectangle."""
        return collated([self[number] for number in numbers], self.config.tokens)

    @cached_property
    def _items(self) -> list[pubmedqa.Item]:
        items = questions(self.data, self.config.held_out)
        trained = len(items) - self.config.held_out
        return items[trained:] if self.split == "validation" else items[:trained]

    def _encoded(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def _encoded_book(self, name: str) -> NDArray[np.int32]:
        text = self._books[name]
        if isinstance(text, Path):
            text = pg19.books(text, self.split, None, None)[name]
        return np.array(self._encoded(text), np.int32)

    def _cut(self, name: str, length: int, rng: random.Random) -> tuple[int, list[int]]:
        """Consecutive tokens of a book from anywhere in it, at most ``length``, and where they begin."""
        ids = self._book(name)
        start = rng.randrange(max(len(ids) - length, 0) + 1)
        return start, ids[start : start + length].tolist()

    def _piece(self, rng: random.Random) -> Sample:
        """Consecutive tokens of a book from anywhere in it, begun as every text is."""
        name, first = rng.choice(sorted(self._books)), beginning(self.tokenizer)
        start, piece = self._cut(name, self.config.tokens - len(first), rng)
        scored = [False] * len(first) + [True] * len(piece)
        return Sample(f"book {name} from token {start}", first + piece, scored)

    def _questions(self, rng: random.Random) -> Sample:
        """Questions, each with its own abstract before it and its answer after it, one after the other."""
        ids: list[int] = []
        scored: list[bool] = []
        names, instruction = [], str(pubmedqa.ASKING["instruction"])
        while not ids or len(ids) < self.config.tokens:
            item = rng.choice(self._items)
            text = prompt_text(self.tokenizer, [item.abstract], item.question, instruction)
            query = text.ids(self.tokenizer, begins=not ids)
            decided = f"{pubmedqa.LEAD} {item.decision}."
            answer = self._encoded(rng.choice((decided, item.long_answer)) + "\n\n")
            if ids and len(ids) + len(query) + len(answer) > self.config.tokens:
                break
            ids, scored = ids + query + answer, scored + [False] * len(query) + [True] * len(answer)
            names.append(item.id)
        end = self.config.tokens
        return Sample(f"questions {', '.join(names)}", ids[-end:], scored[-end:])

    def _abstracts(self, rng: random.Random) -> Sample:
        """Abstracts with their questions and long answers, in any order, begun as every text is."""
        ids, names = beginning(self.tokenizer), []
        begun = len(ids)
        while len(ids) < self.config.tokens:
            item = rng.choice(self._items)
            ids = ids + self._encoded(f"{item.question}\n{item.abstract}\n{item.long_answer}\n\n")
            names.append(item.id)
        ids = ids[: self.config.tokens]
        return Sample(f"abstracts {', '.join(names)}", ids, [at >= begun for at in range(len(ids))])

    def _facts(self, rng: random.Random) -> Sample:
        """A piece of a book with facts in it, then a question for each, in any order.

        Raises:
            InputError: samples are too short for facts and questions.
        """
        name = rng.choice(sorted(self._books))
        kind, seed, end = rng.choice(self.config.kinds), rng.random(), self.config.tokens

        def queries(text: str) -> list[tuple[list[int], list[int]]]:
            again = random.Random(seed)
            examples = with_facts(text, kind, again)
            again.shuffle(examples)
            return [self._query(example, at) for at, example in enumerate(examples)]

        room = sum(len(prompt) + len(answer) for prompt, answer in queries("")) + SLACK
        if end - room < SHORTEST:
            raise InputError(
                f"Texts with facts need samples of at least {room + SHORTEST} tokens, not {end}."
            )
        if len(self._book(name)) < SHORTEST:
            return self._piece(rng)
        pairs = queries(self.tokenizer.decode(self._cut(name, end - room, rng)[1]))
        ids = [token for prompt, answer in pairs for token in prompt + answer]
        scored = [i >= len(p) for p, answer in pairs for i in range(len(p) + len(answer))]
        return Sample(f"{kind} in book {name}", ids[-end:], scored[-end:])

    def _query(self, example: needles.Example, number: int) -> tuple[list[int], list[int]]:
        """Token ids up to an answer, and those of the answer; the first question comes after the text."""
        passages = [] if number else [example.text]
        prompt = prompt_text(self.tokenizer, passages, example.question, AskConfig.instruction)
        begun = replace(prompt, lead=example.lead).ids(self.tokenizer, begins=not number)
        return begun, self._encoded(example.answer)


def books(data: Path, split: str, streamed: int) -> dict[str, Path | str]:
    """The books of a split by name: files in the layout of PG-19, or the texts of a dataset's first ones.

    Raises:
        InputError: there are none.
    """
    if hub.is_name(data):
        return dict(pg19.books(data, split, None, streamed))
    folder = data / "pg19" / split
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise InputError(
            f"There is no book in {folder}: give --data a folder that holds PG-19's as pg19, or the name of "
            f"a dataset of books on the hub."
        )
    return {path.stem: path for path in paths}


def questions(data: Path, held_out: int) -> list[pubmedqa.Item]:
    """PubMedQA's training half, more than are held out.

    Raises:
        InputError: it is missing or smaller.
    """
    items = pubmedqa.load(data / "pubmedqa", "train")
    if len(items) <= held_out:
        raise InputError(
            f"{data} has {len(items)} questions for training, of which {held_out} are held out: give more."
        )
    return items


def check_samples(data: Path, config: SampleConfig) -> None:
    """Refuse a folder that lacks books or questions for training before anything is loaded.

    Raises:
        InputError: they do.
    """
    if config.books or config.facts:
        books(data, "validation", 1)
        books(data, "train", 1)
    if config.questions or config.abstracts:
        questions(data, config.held_out)
