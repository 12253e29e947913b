"""`AnswerStream`: an answer that is read while it is decoded."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager

from hiermem.answer import Answer
from hiermem.errors import InputError


class AnswerStream(Iterator[str]):
    """The text of an answer, piece by piece as it is decoded, and then the answer.

    Pieces are whole characters. Together they are `answer.text`: what could still be left out of it, such as
    the first time of a phrase that may be a loop, is held back until that is known. Whoever stops half way
    leaves the memory as it is.

    Example:
        >>> stream = model.ask(memory, "Who is the captain?", stream=True)
        >>> for piece in stream:
        ...     print(piece, end="", flush=True)
        >>> stream.answer.sources

    Args:
        pieces: of the text; the answer is returned in the end.
        inference: a context that they are decoded in.
        on_end: told of the answer.
    """

    def __init__(
        self,
        pieces: Generator[str, None, Answer],
        inference: Callable[[], AbstractContextManager[None]],
        on_end: Callable[[Answer], object] | None = None,
    ) -> None:
        self._pieces, self._inference, self._on_end = pieces, inference, on_end
        self._answer: Answer | None = None

    def __next__(self) -> str:
        with self._inference():
            try:
                return next(self._pieces)
            except StopIteration as end:
                answer = end.value
        if answer is not None:  # the first time that there is no piece
            self._answer = answer
            if self._on_end is not None:
                self._on_end(answer)
        raise StopIteration

    def finish(self) -> Answer:
        """Take the pieces that are left; the whole answer."""
        for _ in self:
            pass
        return self.answer

    @property
    def answer(self) -> Answer:
        """The whole answer, once all pieces were taken.

        Raises:
            InputError: they were not.
        """
        if self._answer is None:
            raise InputError("The answer has not ended: take all its pieces first, or call finish().")
        return self._answer
