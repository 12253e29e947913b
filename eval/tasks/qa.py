"""Short answers about a long document: Natural Questions, XQuAD, key-value pairs, one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.eval.answer_match import ENGLISH, contains, exact_match, token_f1
from hiermem.eval.metrics import accuracy, bootstrap, means
from hiermem.eval.qa_data import Pool, PoolQuestion, load_pools, split_of
from hiermem.eval.tasks.base import method_option, option, register
from hiermem.eval.tasks.documents import OURS, Document, DocumentTask, Question, overlap

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.answering import Response
    from hiermem.model import HierMemModel

Row = dict[str, Any]

INSTRUCTION = "Answer with a few words from the passages."
"""Instruction after a question; chosen on validation questions of Natural Questions."""
SCORES = ("exact_match", "f1", "contains")
RECALL = ("recall_at_1", "recall_at_5", "source_holds_answer")
ABSTENTION = ("found_precision", "found_recall", "found_wrongly")


@register
@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(DocumentTask):
    """Short answers about a long document: all paragraphs of a data set, asked one question at a time.

    The files tell the layout of the data: Natural Questions or key-value pairs of lost-in-the-middle, XQuAD
    (or its name on the hub), or your own `document.txt` and `questions.jsonl`.

    Examples:

        hiermem eval qa --data nq --split validation --limit 100 --json

        hiermem eval qa --data xquad --language de --document-language en --method bm25

        hiermem eval qa --data nq --abstain --limit 200
    """

    name = "qa"
    title = "Questions about long documents"
    headline = "contains"
    max_new_tokens = 64
    names_evidence = True

    data: Path = option(help="Folder with questions, or the name of XQuAD on the hub.")
    split: str | None = option(None, help="Part of the data, such as validation; default: test.")
    language: str | None = option(None, help="Language of the questions; default: en.")
    document_language: str | None = option(
        None, help="Language of the document and of the answers; default: that of the questions."
    )
    limit: int | None = option(
        None, help="Ask only so many questions, drawn at random; the document stays whole.", least=1
    )
    seed: int = option(0, help="Seed of the paragraphs' order and of what --limit draws.")
    abstain: bool = option(
        False, help="Leave half of the paragraphs out, and ask their questions too: is it noticed?"
    )
    method: str = method_option("right (the right paragraph alone)")

    def configure(self, config: HierMemConfig) -> HierMemConfig:
        """The same with this task's prompt."""
        return super().configure(config).with_asking(instruction=INSTRUCTION)

    def load(self, config: HierMemConfig) -> list[Pool]:
        """The documents and their questions."""
        return load_pools(
            self.data,
            self.split,
            self.language,
            self.limit,
            self.seed,
            document_language=self.document_language,
            halved=self.abstain,
        )

    def texts(self, data: Sequence[Pool]) -> Iterable[str]:
        for pool in data:
            yield from pool.all_texts()

    def settings(self, data: Sequence[Pool], config: HierMemConfig) -> dict[str, Any]:
        language, document_language = self._languages
        return {
            "dataset": self.data.name,
            "split": split_of(self.data, self.split),
            "language": language,
            "document_language": document_language,
            "limit": self.limit,
            "seed": self.seed,
            "abstain": self.abstain,
            "system": self.method,
            **self.method_options(),
        }

    @property
    def _languages(self) -> tuple[str, str]:
        """Of the questions and of the document."""
        language = self.language or ENGLISH
        return language, self.document_language or language

    def documents(self, model: HierMemModel, data: Sequence[Pool]) -> list[Document]:
        return [Document(pool.text, [_question(pool, each) for each in pool.questions]) for pool in data]

    def scores(self, question: Question, response: Response) -> Row:
        """Of a question that has answers: how well the answer agrees, and what the sources show."""
        sources, right, language = response.sources, question.answers, self._languages[1]
        shown = [source.text for source in sources]
        row: Row = {
            "question": question.text,
            "answers": list(right),
            "found": response.found,
            "shown": shown,
        }
        if not right:
            return row | dict.fromkeys((*SCORES, *RECALL))
        row["exact_match"] = exact_match(response.text, right, language)
        row["f1"] = token_f1(response.text, right, language)
        row["contains"] = contains(response.text, right, language)
        row["source_holds_answer"] = any(contains(text, right, language) for text in shown)
        places = [(source.start, source.end) for source in sources]
        for name, best in (("recall_at_1", 1), ("recall_at_5", 5)):
            row[name] = overlap(places[:best], question.evidence) if question.evidence else None
        return row

    def result(self, rows: Sequence[Row]) -> Row:
        """Means over the questions that the document answers; how well these were told from the others."""
        answerable = [row for row in rows if row["answers"]]
        # A method that never shows where an answer comes from has no recall.
        shows = self.method in OURS or any(row["shown"] for row in rows)
        names = (*SCORES, *RECALL, "found") if shows else (*SCORES, "found")
        result = means(answerable, *names) if answerable else {"metrics": {}, "intervals": {}}
        if len(answerable) < len(rows):
            for name, told in zip(ABSTENTION, told_apart(rows), strict=True):
                if told:
                    result["metrics"][name], result["intervals"][name] = accuracy(told), bootstrap(told)
        return {**result, "n": len(rows), "examples": list(rows)}


def _question(pool: Pool, question: PoolQuestion) -> Question:
    return Question(
        key=question.key,
        text=question.text,
        answers=question.answers,
        evidence=pool.evidence(question),
        room=question.room,
    )


def told_apart(rows: Sequence[Row]) -> tuple[list[bool], list[bool], list[bool]]:
    """Lists whose means are precision and recall of `found`, and the share of those that are wrongly so.

    Returns, of questions said to be found, whether each has an answer; of those with an answer, and of those
    without, whether each is said to be found.
    """
    found = [bool(row["answers"]) for row in rows if row["found"]]
    held = [row["found"] for row in rows if row["answers"]]
    lacking = [row["found"] for row in rows if not row["answers"]]
    return found, held, lacking
