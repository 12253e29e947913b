"""`Chat`: a conversation about a document, in which earlier turns count in what a question means.

Passages are recalled anew, by the question and the ones before it, and the backbone reads these behind the
question: sources stay those of the document. Earlier answers do not count: they may be wrong, and a small
backbone says them again.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, overload

from hiermem.answer import NOT_FOUND, Answer
from hiermem.answer_stream import AnswerStream
from hiermem.answering import AnsweringModel, begin
from hiermem.asked_memory import AskedMemory
from hiermem.asking import check_question, prepare
from hiermem.passages import FUNCTION_WORDS, QueryTerms
from hiermem.retrieval.words import UNSPACED, words

TURNS = 2
"""How many of the last questions count."""

CHARACTERS = 200
"""Length to which each is cut."""

WEIGHT = 4
"""How much the words of a question count in the recall, where those of the ones before count once: chosen on
follow-ups that were made of XQuAD's questions (docs/lab-notes/asking.md)."""

_TELLING = 2  # words with which a question stands by itself
_FUNCTION_WORDS = frozenset(words(FUNCTION_WORDS))
_PRONOUNS = frozenset("he her hers him his it its she their theirs them these they this those".split())


@dataclass(frozen=True)
class Turn:
    """A question of a conversation and its answer."""

    question: str
    answer: Answer


class Chat:
    """A conversation about what a memory has read, which stays as it is.

    Example:
        >>> chat = model.chat(memory)
        >>> chat.ask("Who is the captain?").text
        >>> chat.ask("Where was he born?").text

    Args:
        memory: of that model.
        on_question: called before each question.

    Attributes:
        turns: all so far; clear them to begin anew. The last `TURNS` that were answered count.
    """

    def __init__(
        self, model: AnsweringModel, memory: AskedMemory, on_question: Callable[[], object] = lambda: None
    ) -> None:
        self._model, self._memory, self._on_question = model, memory, on_question
        self.turns: list[Turn] = []

    @overload
    def ask(
        self,
        question: str,
        top_k: int | None = None,
        max_new_tokens: int = 64,
        *,
        stream: Literal[False] = False,
    ) -> Answer: ...

    @overload
    def ask(
        self, question: str, top_k: int | None = None, max_new_tokens: int = 64, *, stream: Literal[True]
    ) -> AnswerStream: ...

    def ask(
        self, question: str, top_k: int | None = None, max_new_tokens: int = 64, *, stream: bool = False
    ) -> Answer | AnswerStream:
        """Answer the next question, the first one as `HierMemModel.ask` does.

        A streamed answer is a turn once all its pieces were taken.

        Args:
            top_k: segments to recall; None takes the configured number.
            max_new_tokens: length limit of the answer.
            stream: give the text piece by piece.

        Raises:
            InputError: the question is empty, or a number is negative.
        """
        check_question(question)
        self._on_question()
        query, shown = self._query(question), self._shown(question)
        answer = begin(
            self._model,
            partial(prepare, self._model, self._memory, query, top_k, shown),
            top_k,
            max_new_tokens,
            stream,
            on_end=lambda answer: self.turns.append(Turn(question, answer)),
        )
        return answer if stream else answer.finish()

    def _before(self) -> list[str]:
        """The questions that count, in order, each in one line."""
        turns = [turn for turn in self.turns if turn.answer.text != NOT_FOUND]
        return [" ".join(turn.question.split())[:CHARACTERS] for turn in turns[-TURNS:]]

    def _query(self, question: str) -> str:
        """The words to recall by: those of the questions before count, too, but less.

        Where the document has no word of a question that stands alone, they do not: else a passage would
        always be found.
        """
        before = self._before()
        if not before or (stands_alone(question) and not self._is_known(question)):
            return question
        return "\n".join([*before, *[question] * WEIGHT])

    def _shown(self, question: str) -> str:
        """The question as the backbone reads it."""
        before = " ".join(self._before())
        return f"{question.strip()} (asked after: {before})" if before else question

    def _is_known(self, question: str) -> bool:
        """Whether the document has a word of the question."""
        longterm = self._memory.longterm
        return QueryTerms(longterm.key, question).are_known(longterm.partial)


def stands_alone(question: str) -> bool:
    """Whether a question tells by itself what it is about.

    It has two words that are no English function words, or two characters of a script without spaces, and no
    English pronoun.
    """
    found = set(words(question))
    telling = len(found - _FUNCTION_WORDS) + len(re.findall(f"[{UNSPACED}]", question))
    return telling >= _TELLING and not found & _PRONOUNS
