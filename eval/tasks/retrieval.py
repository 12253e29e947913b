"""Retrieval on PubMedQA: each abstract is a record, each question a query (Jin et al., arXiv 1909.06146)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, table
from hiermem.eval.tasks.base import register
from hiermem.eval.tasks.pubmedqa import Item, QuestionTask

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel


class Records(NamedTuple):
    """Records that are searched, and the settings of the search.

    Attributes:
        items: each abstract is a record, each question a query.
        config: of the long-term memory and of reranking.
    """

    items: list[Item]
    config: HierMemConfig


@register
@dataclass(frozen=True, kw_only=True)
class Retrieval(QuestionTask):
    """Find each PubMedQA question's own abstract among all abstracts.

    Examples:

        hiermem eval retrieval --data pubmedqa --split test --limit 300 --json

        hiermem eval retrieval --data pubmedqa --rerank 5

        hiermem eval retrieval --data pubmedqa --model runs/key
    """

    name = "retrieval"
    title = "PubMedQA retrieval"
    model_options = ("preset", "rerank")

    def needs_model(self, config: HierMemConfig) -> bool:
        """Where the search keys have a trained part, or the best records are reranked."""
        return bool(config.summary.search or config.asking.rerank)

    def load(self, config: HierMemConfig) -> Records:
        """The questions, each with its abstract."""
        return Records(self.questions(), config)

    def texts(self, data: Records) -> Iterable[str]:
        return map(str, data.items)

    def settings(self, data: Records, config: HierMemConfig) -> dict[str, Any]:
        return self.part()

    def rows(self, model: HierMemModel | None, data: Records, log: ResultLog) -> dict[str, Any]:
        """Share of questions whose own abstract is the best record, or among the five best."""
        from hiermem.eval.ranking import evaluate

        return evaluate(data.items, data.config, model, log)

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        names = ("recall_at_1", "recall_at_5")
        rows = [[row["system"], *(row[name] for name in names), r["n"]] for r in reports for row in r["rows"]]
        return table(["key", "recall@1", "recall@5", "n"], rows)
