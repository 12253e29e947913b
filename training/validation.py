"""Validation figures that stages of `equip` are judged by: books that are read on, and codes in them.

Perplexity alone would let a tier buy style with facts, and codes alone the reverse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch

from hiermem.errors import InputError
from hiermem.eval.haystack import Haystack
from hiermem.eval.methods import Pruned
from hiermem.eval.scoring import score_answer, stream_nll
from hiermem.eval.tasks import needles, pg19
from hiermem.model import HierMemModel
from hiermem.settings import check_settings
from hiermem.text import from_beginning
from hiermem.training.distributed import all_reduce_sum, rank, world


@dataclass(frozen=True)
class ValidationConfig:
    """Settings of a validation.

    Attributes:
        pieces: pieces of validation books, from the books in turn.
        tokens: tokens of a piece.
        codes: texts in which four codes are hidden, one asked for.
        length: tokens of such a text.
        keep: share of it that is kept before the question is seen.
        seed: seed of places and codes.
    """

    pieces: int = 6
    tokens: int = 4096
    codes: int = 24
    length: int = 2000
    keep: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.pieces < 1 or self.codes < 1 or min(self.tokens, self.length) < 2:
            raise InputError("A validation needs at least one piece and one code of at least 2 tokens.")
        if not 0 < self.keep <= 1:
            raise InputError(f"A share above 0 and up to 1 is kept, not {self.keep}.")


@dataclass(frozen=True)
class Figures:
    """Negative log-likelihood in nats a token, lower is better.

    Attributes:
        books: of pieces of books, read on as configured.
        codes: of codes after a text of which a share is kept.
    """

    books: float
    codes: float

    @property
    def mean(self) -> float:
        """Of both, which count alike."""
        return (self.books + self.codes) / 2


class Validation:
    """Validation texts.

    Args:
        data: folder that holds `pg19`.

    Raises:
        InputError: there are no validation books.
    """

    def __init__(self, data: Path, config: ValidationConfig) -> None:
        self.config = config
        self._texts = pg19.books(data / "pg19", "validation", None, None)
        self._books: list[Haystack] = []

    @torch.inference_mode()
    def figures(self, model: HierMemModel) -> Figures:
        """How well a model reads on, and what it still knows; each of several processes takes its share.

        Raises:
            InputError: the books are too short.
        """
        from tqdm.auto import tqdm

        config = self.config
        self._books = self._books or [Haystack(model.tokenizer, text) for text in self._texts.values()]
        bar = partial(tqdm, disable=None if rank() == 0 else True, delay=2)
        rows = [self._piece(model, number) for number in bar([*_own(config.pieces)], desc="books")]
        codes = [self._code(model, example) for example in bar(self._examples(), desc="codes")]
        sums = torch.tensor([sum(rows), sum(codes)], dtype=torch.float64)
        books_sum, codes_sum = all_reduce_sum(sums).tolist()
        return Figures(books_sum / config.pieces, codes_sum / config.codes)

    def _piece(self, model: HierMemModel, number: int) -> float:
        book = self._books[number % len(self._books)]
        text = book.cut(self.config.tokens, Random(f"{self.config.seed}/piece/{number}"))
        ids = from_beginning(model.tokenizer, model.reader.encode(text, begins=False)[0].tolist())
        blocks = stream_nll(model.reader, model.new_recurrent_memory(), torch.tensor(ids))
        return float(torch.cat([*blocks]).mean())

    def _code(self, model: HierMemModel, example: needles.Example) -> float:
        method = Pruned(model, self.config.keep)
        prompt = method.prompt(method.read(example.text), example.question)
        return float(score_answer(model.reader, prompt, example.answer, example.lead).nll.mean())

    def _examples(self) -> Sequence[needles.Example]:
        config = self.config
        found = needles.examples(self._books, config.length, config.codes, config.seed)
        return [found[number] for number in _own(config.codes)]


def _own(count: int) -> Iterator[int]:
    """The numbers that this process takes."""
    yield from range(rank(), count, world())
