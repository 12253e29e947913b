"""Records ranked for questions by words, by trained keys and by reranking; each question has its own one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hiermem.asking_config import AskConfig
from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.methods.passages import WordIndex
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tasks.pubmedqa import Item
from hiermem.memory.longterm import Hit, LongTermMemory, SegmentRecord
from hiermem.model import HierMemModel
from hiermem.reranking import is_close, reranked
from hiermem.retrieval.keys import Question

BEST = 5


def evaluate(
    items: Sequence[Item], config: HierMemConfig, model: HierMemModel | None, log: ResultLog
) -> dict[str, Any]:
    """Share of questions whose own abstract is the best record, or among the five best.

    BM25 and the keys that need no model stand beside all keys together, and those beside reranking.

    Args:
        model: what makes the trained part of the search keys and reranks; None: neither is done.
    """
    if not items:
        raise InputError("There is nothing to evaluate: raise --limit.")
    counted = max(BEST, config.asking.rerank)
    memory = LongTermMemory(config.longterm)
    hits, keys = _found(items, memory, [None] * len(items), counted), _keys_of(memory)
    ranks = {"bm25": _bm25(items), keys: _segments(hits)}
    if model is not None and config.summary.search:
        bar = tqdm(items, desc="reading", disable=None)
        parts = [log.row(item.id, _embedded, model, item) for item in bar]
        embeddings = [(torch.tensor(row["embedding"]), torch.tensor(row["summary"])) for row in parts]
        memory = LongTermMemory(config.longterm, model.summary)
        hits, keys = _found(items, memory, embeddings, counted), _keys_of(memory)
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
        memory.recall(Question(item.question, summary), count)
        for item, (_, summary) in zip(items, pairs, strict=True)
    ]


def _keys_of(memory: LongTermMemory) -> str:
    return " and ".join(key.name for key in memory.keys)


def _segments(hits: Sequence[Sequence[Hit]]) -> list[list[int]]:
    return [[hit.segment for hit in found] for found in hits]


def _reranked(
    items: Sequence[Item],
    hits: Sequence[Sequence[Hit]],
    config: AskConfig,
    model: HierMemModel,
    log: ResultLog,
) -> list[list[int]]:
    """The best records for each question, ranked again where scores leave open which is the best."""

    def row(item: Item, found: Sequence[Hit]) -> dict[str, Any]:
        best = reranked(model.reader, found[: config.rerank], item.question)
        return {"best": [hit.segment for hit in best]}

    ranks = _segments(hits)
    close = [place for place, found in enumerate(hits) if is_close(found, 1, config.margin)]
    for place in tqdm(close, desc="reranking", disable=None):
        best = log.row(f"{items[place].id} reranked", row, items[place], hits[place])["best"]
        ranks[place][: config.rerank] = best
    return ranks


def _bm25(items: Sequence[Item]) -> list[list[int]]:
    index = WordIndex([item.abstract for item in items])
    scores = torch.tensor([index.scores(item.question).tolist() for item in items])
    return scores.topk(min(BEST, len(items))).indices.tolist()


def _recall(ranks: list[list[int]]) -> dict[str, float]:
    return {
        "recall_at_1": sum(right in found[:1] for right, found in enumerate(ranks)) / len(ranks),
        f"recall_at_{BEST}": sum(right in found[:BEST] for right, found in enumerate(ranks)) / len(ranks),
    }


@torch.inference_mode()
def _embedded(model: HierMemModel, item: Item) -> dict[str, Any]:
    """Memory embeddings of the abstract and summary of the question, each ``[m, d]``."""
    return {
        "embedding": model.embed(item.abstract).tolist(),
        "summary": model.summarise(item.question).tolist(),
    }
