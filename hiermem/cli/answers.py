"""Answers on standard output: whole, as JSON, or on a terminal while they are decoded."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hiermem.cli.terminal import write
from hiermem.errors import InputError

if TYPE_CHECKING:
    from hiermem.answer import Answer
    from hiermem.answer_stream import AnswerStream


def as_json(answer: "Answer") -> dict[str, Any]:
    """An answer and its sources as JSON has them."""
    return {
        "answer": answer.text,
        "found": answer.found,
        "confidence": answer.confidence,
        "complete": answer.complete,
        "recalled": answer.recalled,
        "sources": [vars(source) for source in answer.sources],
        "first_token_seconds": answer.first_token_seconds,
    }


def in_words(answer: "Answer") -> str:
    """An answer and its sources for a person to read."""
    return f"→ {answer}"


def is_terminal() -> bool:
    """Whether a person sees what is written at once."""
    return sys.stdout.isatty()


def is_conversation() -> bool:
    """Whether a person types, too."""
    return is_terminal() and sys.stdin is not None and sys.stdin.isatty()


def show(stream: "AnswerStream") -> None:
    """Write the same words as `in_words` gives while they are decoded.

    Raises:
        ReaderGone: nobody reads them.
    """
    from hiermem.answer import indented

    text, shown = "", 0

    def grow(words: str) -> None:
        nonlocal shown
        write(words[shown:])
        shown = len(words)

    with _line_ended():
        for piece in stream:
            text += piece
            grow("→ " + indented(text))
        grow(in_words(stream.answer) + "\n")


def converse(ask: Callable[[str], "AnswerStream"]) -> None:
    """Answer what is typed, line by line, until the input ends.

    Raises:
        InputError: a line is no text.
    """
    with suppress(ImportError):  # there is none on Windows; where it is imported, lines can be edited
        import readline  # noqa: F401
    while (question := _typed()) is not None:
        if question.strip():
            show(ask(question))


def _typed() -> str | None:
    """The next line from the terminal; None: there is none."""
    try:
        with _line_ended():
            return input("> ")
    except EOFError:
        write("\n")
        return None
    except UnicodeDecodeError as error:
        raise InputError("What was typed is not in the terminal's encoding: set LANG to UTF-8.") from error


@contextmanager
def _line_ended() -> Iterator[None]:
    """End the present line on Ctrl-C, so that what says so has one of its own."""
    try:
        yield
    except KeyboardInterrupt:
        write("\n")
        raise
