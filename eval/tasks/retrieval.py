"""Retrieval: each paragraph is a record, each question a query that should find its own one.

A paragraph is an abstract of PubMedQA (Jin et al., arXiv 1909.06146), or one of the documents of `eval qa`,
see `hiermem.eval.qa_data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.qa_data import DOCUMENT, Pool, PoolQuestion, load_pool
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, table
from hiermem.eval.tasks.base import ENCODER_HELP, option, register
from hiermem.eval.tasks.pubmedqa import Item, QuestionTask

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel

PUBMEDQA, TEST = "pubmedqa", "test"


class Records(NamedTuple):
    """Records that are searched, and the settings of the search.

    Attributes:
        pool: each paragraph is a record, each question a query.
        texts: all that the results depend on in the data.
        config: of the long-term memory and of reranking.
    """

    pool: Pool
    texts: list[str]
    config: HierMemConfig


@register
@dataclass(frozen=True, kw_only=True)
class Retrieval(QuestionTask):
    """Find each question's own paragraph among all: PubMedQA's abstracts, or a folder that `eval qa` takes.

    Examples:

        hiermem eval retrieval --data pubmedqa --split test --limit 300 --json

        hiermem eval retrieval --data pubmedqa --rerank 5

        hiermem eval retrieval --data nq --split test --encoder minilm

        hiermem eval retrieval --data pubmedqa --model runs/key
    """

    name = "retrieval"
    title = "Retrieval"
    headline = "recall_at_1"
    model_options = ("preset", "rerank")
    language: str | None = option(None, help="Of XQuAD: en (default), de, es, ru, zh, ar.")
    encoder: str | None = option(
        None, help=f"{ENCODER_HELP}, to rank by it too, alone and with BM25 and the search keys."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language is not None and not _holds_a_pool(self.data):
            raise InputError("PubMedQA is in English alone: leave --language out.")

    def configure(self, config: HierMemConfig) -> HierMemConfig:
        if self.encoder is not None:
            from hiermem.retrieval.encoder import encoder_path

            encoder_path(self.encoder)
        return config

    def needs_model(self, config: HierMemConfig) -> bool:
        """Where search keys are made of what the model reads, or the best records are reranked."""
        return bool(config.summary.search or config.longterm.has_states or config.asking.rerank)

    def parts(self) -> tuple[str, ...]:
        return ("longterm", "asking", "summary", "state_encoder")

    def load(self, config: HierMemConfig) -> Records:
        """The questions and the paragraphs that they are searched in."""
        if not _holds_a_pool(self.data):
            if not self.data.exists() and not hub.is_name(self.data):
                raise InputError(
                    f"There is no folder {self.data}: give PubMedQA's, or one that eval qa takes."
                )
            items = self.questions()
            return Records(pool_of(items), list(map(str, items)), config)
        own = self.split == TEST and (self.data / DOCUMENT).exists()  # which has no splits
        pool = load_pool(self.data, None if own else self.split, self.language, self.limit, self.seed or 0)
        return Records(pool, list(pool.all_texts()), config)

    def texts(self, data: Records) -> Iterable[str]:
        return data.texts

    def settings(self, data: Records, config: HierMemConfig) -> dict[str, Any]:
        """The part of the data that was searched; of PubMedQA, named as before there were others."""
        found = self.part()
        if _holds_a_pool(self.data):
            found |= {"folder": self.data.name, "language": self.language}
        return found if self.encoder is None else found | {"encoder": self.encoder}

    def rows(self, model: HierMemModel | None, data: Records, log: ResultLog) -> dict[str, Any]:
        """Share of questions whose own paragraph is the best record, or among the five best."""
        from hiermem.eval.ranking import evaluate

        return evaluate(data.pool, data.config, model, log, self.encoder)

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        names = ("recall_at_1", "recall_at_5")
        rows = [
            [_data_of(report), row["system"], *(row[name] for name in names), report["n"]]
            for report in reports
            for row in report["rows"]
        ]
        return table(["data", "ranked by", "recall@1", "recall@5", "n"], rows)


def _holds_a_pool(data: Path) -> bool:
    """Whether a folder is in one of the layouts of `hiermem.eval.qa_data`, not in PubMedQA's."""
    return any((data / DOCUMENT).exists() or any(data.glob(files)) for files in ("*.jsonl", "*.*.json"))


def pool_of(items: Iterable[Item]) -> Pool:
    """The abstract of every question, with the question."""
    items = list(items)
    questions = [
        PoolQuestion(item.id, item.question, (item.decision,), place) for place, item in enumerate(items)
    ]
    return Pool([item.abstract for item in items], questions)


def _data_of(report: Report) -> str:
    config = report["config"]
    parts = (config.get("folder", PUBMEDQA), config.get("language"), config["split"])
    return " ".join(part for part in parts if part)
