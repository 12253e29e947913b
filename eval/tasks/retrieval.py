"""Retrieval on PubMedQA: each abstract is a record, each question a query (Jin et al., arXiv 1909.06146)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hiermem.asking import AskConfig
from hiermem.errors import InputError
from hiermem.eval.journal import Journal
from hiermem.eval.systems import word_index, words
from hiermem.eval.tasks.pubmedqa import Item
from hiermem.memory.longterm import Hit, LongTermMemory, Record
from hiermem.reranking import in_doubt, reranked

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel

BEST = 5


def evaluate(
    items: Sequence[Item], config: "HierMemConfig", model: "HierMemModel | None", journal: Journal
) -> dict[str, Any]:
    """Share of questions whose own abstract is the best record, or among the five best.

    BM25 and the lexical part of the search key stand beside the whole key, and that beside a second look.

    Args:
        model: what makes the trained part of the search keys and looks again; None: neither is done.
    """
    if not items:
        raise InputError("There is nothing to evaluate: raise --limit.")
    hits = _found(items, LongTermMemory(config.longterm), [None] * len(items))
    ranks, keys = {"bm25": _bm25(items), "lexical": _segments(hits)}, "lexical"
    if model is not None and config.summary.search:
        rows = [
            journal.row(item.id, _embedded, model, item) for item in tqdm(items, desc="reading", disable=None)
        ]
        read = [(torch.tensor(row["embedding"]), torch.tensor(row["summary"])) for row in rows]
        hits, keys = (
            _found(items, LongTermMemory(config.longterm, model.summary), read),
            "lexical and trained",
        )
        ranks[keys] = _segments(hits)
    if model is not None and config.asking.rerank:
        ranks[f"{keys}, reranked"] = _looked_again(items, hits, config.asking, model, journal)
    systems = [{"system": name, **_recall(found)} for name, found in ranks.items()]
    return {"metrics": _recall(list(ranks.values())[-1]), "n": len(items), "rows": systems}


def _found(
    items: Sequence[Item], memory: LongTermMemory, read: Sequence[tuple[Tensor, ...] | None]
) -> list[list[Hit]]:
    """The best records for each question.

    Args:
        read: memory embeddings of the abstract and summary of the question, where the model makes them.
    """
    nothing = torch.zeros(0, dtype=torch.int32)
    pairs = [(None, None) if both is None else both for both in read]
    for item, (embedding, _) in zip(items, pairs, strict=True):
        memory.write([Record(0, nothing, 0, len(item.abstract), item.abstract, embedding)])
    return [
        memory.search(item.question, BEST, summary=summary)
        for item, (_, summary) in zip(items, pairs, strict=True)
    ]


def _segments(hits: Sequence[Sequence[Hit]]) -> list[list[int]]:
    return [[hit.segment for hit in found] for found in hits]


def _looked_again(
    items: Sequence[Item],
    hits: Sequence[Sequence[Hit]],
    config: AskConfig,
    model: "HierMemModel",
    journal: Journal,
) -> list[list[int]]:
    """The best records for each question, ranked again where the best one is in doubt."""

    def row(item: Item, found: Sequence[Hit]) -> dict[str, Any]:
        again = reranked(model, found[: config.rerank], item.question)
        return {"best": [hit.segment for hit in (*again, *found[config.rerank :])]}

    ranks = _segments(hits)
    doubtful = [place for place, found in enumerate(hits) if in_doubt(found, config.doubt)]
    for place in tqdm(doubtful, desc="looking again", disable=None):
        item = items[place]
        ranks[place] = journal.row(f"{item.id} again", row, item, hits[place])["best"]
    return ranks


def _bm25(items: Sequence[Item]) -> list[list[int]]:
    index = word_index([item.abstract for item in items])
    scores = torch.tensor([list(index.get_scores(words(item.question))) for item in items])
    return scores.topk(min(BEST, len(items))).indices.tolist()


def _recall(ranks: list[list[int]]) -> dict[str, float]:
    return {
        "recall_at_1": sum(own in found[:1] for own, found in enumerate(ranks)) / len(ranks),
        f"recall_at_{BEST}": sum(own in found for own, found in enumerate(ranks)) / len(ranks),
    }


@torch.inference_mode()
def _embedded(model: "HierMemModel", item: Item) -> dict[str, Any]:
    """Memory embeddings of the abstract and summary of the question, each ``[m, d]``."""
    return {
        "embedding": model.embed(item.abstract).tolist(),
        "summary": model.summarise(item.question).tolist(),
    }
