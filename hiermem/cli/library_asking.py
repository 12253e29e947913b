"""`hiermem ask LIB`: a library answers questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hiermem.cli import options as opt
from hiermem.cli.library_model import library_model
from hiermem.errors import InputError

if TYPE_CHECKING:
    from hiermem.answer import Answer
    from hiermem.answer_stream import AnswerStream
    from hiermem.library import Library


@dataclass(frozen=True)
class LibraryQuestions:
    """Questions that are put to a library.

    Attributes:
        documents: names of those that they are about; empty: all.
        before: only pages before that one; None: all.
        top_k: segments to recall; None: as configured.
        max_new_tokens: length limit of an answer.
    """

    library: "Library"
    documents: Sequence[str]
    before: int | None
    top_k: int | None
    max_new_tokens: int

    def answers(self, questions: list[str]) -> "list[Answer]":
        """The answers to several questions together."""
        return self.library.ask(
            questions, self.top_k, self.max_new_tokens, documents=self.documents, before=self.before
        )

    def stream(self, question: str) -> "AnswerStream":
        """The answer to one question while it is decoded."""
        return self.library.ask(
            question,
            self.top_k,
            self.max_new_tokens,
            stream=True,
            documents=self.documents,
            before=self.before,
        )

    def conversation(self) -> "Callable[[str], AnswerStream]":
        """Answers to one question after the other, in which earlier ones count."""
        chat = self.library.chat(documents=self.documents, before=self.before)
        return lambda typed: chat.ask(typed, self.top_k, self.max_new_tokens, stream=True)


def open_library(
    lib: Path,
    model: str | None,
    dtype: str | None,
    quantize: str | None,
    device: str | None,
    *,
    rerank: int | None,
    always_answer: bool,
) -> "Library":
    """A library that is there, with the model that asks it."""
    from hiermem.library import Library

    opt.check_numbers(dtype, device)
    reader = library_model(lib, model, None, dtype, quantize, device)
    reader.config.asking = opt.reranking(reader.config, rerank).asking
    if always_answer:
        reader.config.asking = replace(reader.config.asking, least_confidence=0.0)
    return Library.open(lib, reader, writes=False)


def refuse_for_library(lib: Path, **given: object) -> None:
    """Refuse options that say how one memory was read.

    Raises:
        InputError: one is given.
    """
    for name, value in given.items():
        if value:
            raise InputError(f"{lib} is a library, which has settings of its own: leave --{name} out.")


def refuse_for_memory(documents: Sequence[str], before: int | None) -> None:
    """Refuse options that choose documents of a library.

    Raises:
        InputError: one is given.
    """
    for name, value in (("document", documents), ("before", before is not None)):
        if value:
            raise InputError(f"A memory is of one document: leave --{name} out, or ask a library.")
