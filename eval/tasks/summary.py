"""Question-focused summaries: meetings of QMSum, stories of SQuALITY."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval.metrics import bootstrap_groups, means
from hiermem.eval.summary_data import SummaryDocument, load_documents
from hiermem.eval.tasks.base import option, register
from hiermem.eval.tasks.documents import Document, DocumentTask, Question

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.answering import Response
    from hiermem.model import HierMemModel

Row = dict[str, Any]
ROUGE = ("rouge1", "rouge2", "rougeL")


@register
@dataclass(frozen=True, kw_only=True)
class Summary(DocumentTask):
    """Answers of a paragraph about meetings or stories, by ROUGE against the reference that fits best.

    Examples:

        hiermem eval summary --data qmsum --split validation --limit 20 --json

        hiermem eval summary --data squality --method bm25 --passages 8
    """

    name = "summary"
    title = "Question-focused summaries"
    headline = "rougeL"
    max_new_tokens = 200

    data: Path = option(help="Folder in the layout of QMSum or SQuALITY.")
    split: str = option("test", help="Part of the data, such as validation.")
    limit: int | None = option(
        None, help="Ask only so many questions, of as few documents as hold them.", least=1
    )
    seed: int = option(0, help="Seed of the documents that --limit draws.")

    def load(self, config: HierMemConfig) -> list[SummaryDocument]:
        """The documents with their questions."""
        _scorer()
        return load_documents(self.data, self.split, self.limit, self.seed)

    def texts(self, data: Sequence[SummaryDocument]) -> Iterable[str]:
        for document in data:
            yield document.text
            for text, answers in document.questions:
                yield from (text, *answers)

    def settings(self, data: Sequence[SummaryDocument], config: HierMemConfig) -> dict[str, Any]:
        values = {"dataset": self.data.name, "split": self.split, "limit": self.limit, "seed": self.seed}
        return {**values, "system": self.method, **self.method_options()}

    def documents(self, model: HierMemModel, data: Sequence[SummaryDocument]) -> list[Document]:
        return [Document(document.text, _questions(document)) for document in data]

    def scores(self, question: Question, response: Response) -> Row:
        """F-measures of ROUGE-1, 2 and L, the last over the whole answer (`rougeL`), words stemmed."""
        rouge = _scorer().score_multi(question.answers, response.text)
        shown = [source.text for source in response.sources]
        row: Row = {"question": question.text, "answers": list(question.answers), "shown": shown}
        return row | {"found": response.found} | {name: rouge[name].fmeasure for name in ROUGE}

    def result(self, rows: Sequence[Row]) -> Row:
        """Means over questions, with intervals over documents, of which one alone tells of no interval."""
        result = means(rows, *ROUGE, "found")
        documents = defaultdict(list)
        for row in rows:
            documents[row["document"]].append(row)
        several = len(documents) > 1
        result["intervals"] = {
            name: bootstrap_groups([[float(row[name]) for row in group] for group in documents.values()])
            for name in result["metrics"]
            if several
        }
        return {**result, "examples": list(rows)}


def _questions(document: SummaryDocument) -> list[Question]:
    return [
        Question(
            key=f"{document.key}/{place}", text=text, answers=answers, about=(("document", document.key),)
        )
        for place, (text, answers) in enumerate(document.questions)
    ]


def _scorer() -> Any:
    """ROUGE as the data sets are scored with: stemmed words.

    Raises:
        InputError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError("ROUGE needs rouge-score: install hiermem with the extra eval.") from error
    return RougeScorer(ROUGE, use_stemmer=True)
