"""Retrieval on PubMedQA: each abstract is a record, each question a query (Jin et al., arXiv 1909.06146)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hiermem.asking import AskConfig
from hiermem.errors import InputError
from hiermem.eval.methods import word_index, words
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, table
from hiermem.eval.tasks.base import register
from hiermem.eval.tasks.pubmedqa import Item, QuestionTask
from hiermem.memory.longterm import Hit, LongTermMemory, SegmentRecord
from hiermem.reranking import is_close, reranked

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel

BEST = 5


class Records(NamedTuple):
    """Records that are searched, and the settings of the search.

    Attributes:
        items: each abstract is a record, each question a query.
        config: of the long-term memory and of reranking.
    """

    items: list[Item]
    config: "HierMemConfig"


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

    def needs_model(self, config: "HierMemConfig") -> bool:
        """Where the search keys have a trained part, or the best records are reranked."""
        return bool(config.summary.search or config.asking.rerank)

    def load(self, config: "HierMemConfig") -> Records:
        """The questions, each with its abstract."""
        return Records(self.questions(), config)

    def texts(self, data: Records) -> Iterable[str]:
        return map(str, data.items)

    def settings(self, data: Records, config: "HierMemConfig") -> dict[str, Any]:
        return self.part()

    def rows(self, model: "HierMemModel | None", data: Records, log: ResultLog) -> dict[str, Any]:
        """Share of questions whose own abstract is the best record, or among the five best."""
        return evaluate(data.items, data.config, model, log)

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        names = ("recall_at_1", "recall_at_5")
        rows = [[row["system"], *(row[name] for name in names), r["n"]] for r in reports for row in r["rows"]]
        return table(["key", "recall@1", "recall@5", "n"], rows)


def evaluate(
    items: Sequence[Item], config: "HierMemConfig", model: "HierMemModel | None", log: ResultLog
) -> dict[str, Any]:
    """Share of questions whose own abstract is the best record, or among the five best.

    BM25 and the lexical part of the search key stand beside the whole key, and that beside reranking.

    Args:
        model: what makes the trained part of the search keys and reranks; None: neither is done.
    """
    if not items:
        raise InputError("There is nothing to evaluate: raise --limit.")
    counted = max(BEST, config.asking.rerank)
    hits = _found(items, LongTermMemory(config.longterm), [None] * len(items), counted)
    ranks, keys = {"bm25": _bm25(items), "lexical": _segments(hits)}, "lexical"
    if model is not None and config.summary.search:
        bar = tqdm(items, desc="reading", disable=None)
        parts = [log.row(item.id, _embedded, model, item) for item in bar]
        embeddings = [(torch.tensor(row["embedding"]), torch.tensor(row["summary"])) for row in parts]
        hits = _found(items, LongTermMemory(config.longterm, model.summary), embeddings, counted)
        keys = "lexical and trained"
        ranks[keys] = _segments(hits)
    if model is not None and config.asking.rerank:
        ranks[f"{keys}, reranked"] = _reranked(items, hits, config.asking, model, log)
    rows = [{"system": name, **_recall(found)} for name, found in ranks.items()]
    return {"metrics": _recall(list(ranks.values())[-1]), "n": len(items), "rows": rows}


def _found(
    items: Sequence[Item],
    memory: LongTermMemory,
    read: Sequence[tuple[Tensor, ...] | None],
    count: int,
) -> list[list[Hit]]:
    """The ``count`` best records for each question.

    Args:
        read: memory embeddings of the abstract and summary of the question, where the model makes them.
    """
    nothing = torch.zeros(0, dtype=torch.int32)
    pairs = [(None, None) if both is None else both for both in read]
    for item, (embedding, _) in zip(items, pairs, strict=True):
        memory.write([SegmentRecord(0, nothing, 0, len(item.abstract), item.abstract, embedding)])
    return [
        memory.search(item.question, count, summary=summary)
        for item, (_, summary) in zip(items, pairs, strict=True)
    ]


def _segments(hits: Sequence[Sequence[Hit]]) -> list[list[int]]:
    return [[hit.segment for hit in found] for found in hits]


def _reranked(
    items: Sequence[Item],
    hits: Sequence[Sequence[Hit]],
    config: AskConfig,
    model: "HierMemModel",
    log: ResultLog,
) -> list[list[int]]:
    """The best records for each question, ranked again where scores leave open which is the best."""

    def row(item: Item, found: Sequence[Hit]) -> dict[str, Any]:
        best = reranked(model, found[: config.rerank], item.question)
        return {"best": [hit.segment for hit in best]}

    ranks = _segments(hits)
    close = [place for place, found in enumerate(hits) if is_close(found, 1, config.margin)]
    for place in tqdm(close, desc="reranking", disable=None):
        best = log.row(f"{items[place].id} reranked", row, items[place], hits[place])["best"]
        ranks[place][: config.rerank] = best
    return ranks


def _bm25(items: Sequence[Item]) -> list[list[int]]:
    index = word_index([item.abstract for item in items])
    scores = torch.tensor([list(index.get_scores(words(item.question))) for item in items])
    return scores.topk(min(BEST, len(items))).indices.tolist()


def _recall(ranks: list[list[int]]) -> dict[str, float]:
    return {
        "recall_at_1": sum(right in found[:1] for right, found in enumerate(ranks)) / len(ranks),
        f"recall_at_{BEST}": sum(right in found[:BEST] for right, found in enumerate(ranks)) / len(ranks),
    }


@torch.inference_mode()
def _embedded(model: "HierMemModel", item: Item) -> dict[str, Any]:
    """Memory embeddings of the abstract and summary of the question, each ``[m, d]``."""
    return {
        "embedding": model.embed(item.abstract).tolist(),
        "summary": model.summarise(item.question).tolist(),
    }
