"""Tasks that ask questions about documents: one is read once by a method and asked any number of times."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from hiermem.errors import InputError
from hiermem.eval.metrics import mean_costs, means
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tasks.base import AnswerTask

if TYPE_CHECKING:
    from hiermem.eval.answering import Response
    from hiermem.eval.methods import Method
    from hiermem.model import HierMemModel

Row = dict[str, Any]
HIERMEM = "hiermem"
"""Name of the method that is hiermem itself."""
OURS = (HIERMEM, "indexed")
"""Names of the methods that are hiermem, with the document read or only indexed."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a document.

    Attributes:
        key: tells it from all others of a run.
        text: what is asked.
        answers: every answer that counts as right.
        lead: how the answer begins; given to the backbone, and not scored.
        evidence: character spans of the document that hold the answer.
        room: most tokens of its answer; None: as many as the task allows.
        about: what its row says of it beside the scores, such as the length of the text.
    """

    key: str
    text: str
    answers: tuple[str, ...]
    lead: str = ""
    evidence: tuple[tuple[int, int], ...] = ()
    room: int | None = None
    about: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Document:
    """A text and the questions about it."""

    text: str
    questions: Sequence[Question]


def overlap(places: Iterable[tuple[int, int]], evidence: Iterable[tuple[int, int]]) -> bool:
    """Whether a span of the first has a character of a span of the second."""
    spans = list(evidence)
    return any(start < last and end > first for start, end in places for first, last in spans)


def evidence_alone(document: Document) -> list[Document]:
    """The evidence of each question of a document as a document of its own.

    Raises:
        InputError: a question names none.
    """
    found = []
    for question in document.questions:
        if not question.evidence:
            raise InputError(
                f"The question {question.text!r} names no evidence, which is all that this method shows: "
                f"choose another --method, or take the question out."
            )
        text = "\n\n".join(document.text[start:end] for start, end in question.evidence)
        found.append(Document(text, [replace(question, evidence=((0, len(text)),))]))
    return found


@dataclass(frozen=True, kw_only=True)
class DocumentTask(AnswerTask):
    """A task that asks questions about documents and scores greedy answers.

    A subclass makes the documents and scores an answer; another way to answer, such as the likelihood of the
    right one, replaces `answer`.

    Attributes:
        max_new_tokens: most tokens of an answer, where its question does not say.
    """

    max_new_tokens: ClassVar[int] = 32

    @abstractmethod
    def documents(self, model: HierMemModel, data: Any) -> Sequence[Document]:
        """The documents with their questions. All are made first: what cannot be made is refused before
        anything is read.

        Raises:
            InputError: one cannot be made.
        """

    @abstractmethod
    def scores(self, question: Question, response: Response) -> Row:
        """Scores of an answer by name, numbers or None."""

    def result(self, rows: Sequence[Row]) -> Row:
        """The result of a run: means of all scores, and every row among its ``examples``."""
        measured = [name for name, value in rows[0].items() if isinstance(value, float | int)]
        return {**means(rows, *measured), "examples": list(rows)}

    def rows(self, model: HierMemModel, data: Any, log: ResultLog) -> Row:
        """Answer every question of every document; each is a row of the log."""
        from tqdm.auto import tqdm

        method, documents, rows = self.new_method(model), self.documents(model, data), []
        if method.needs_evidence:
            documents = [alone for document in documents for alone in evidence_alone(document)]
        total = sum(len(document.questions) for document in documents)
        with tqdm(total=total, desc=self.name, disable=None, delay=2) as bar:
            for document in documents:
                read = cache(method.read)  # once, and only if a question is still open
                for question in document.questions:
                    row = log.row(question.key, self._row, method, read, document.text, question)
                    rows.append(row)
                    bar.update()
        return {**self.result(rows), "costs": mean_costs(rows)}

    def _row(self, method: Method[Any], read: Any, text: str, question: Question) -> Row:
        return {**dict(question.about), **self.answer(method, read(text), question)}

    def answer(self, method: Method[Any], context: Any, question: Question) -> Row:
        """The row of a question: the greedy answer, its scores and its costs.

        Args:
            context: the document, as the method read it.
        """
        from hiermem.eval.answering import respond

        room = self.max_new_tokens if question.room is None else question.room
        response = respond(method, context, question.text, question.lead, room)
        return {"answer": response.text, **self.scores(question, response), **response.costs()}
