"""Texts ranked for questions by words, by meaning, by trained keys and by reranking."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from hiermem.asking_config import AskConfig
from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.methods.dense import DenseIndex
from hiermem.eval.methods.hybrid import z_scores
from hiermem.eval.methods.passages import Index, WordIndex
from hiermem.eval.qa_data import Pool
from hiermem.eval.result_log import ResultLog
from hiermem.memory.longterm import Hit, LongTermMemory, SegmentRecord
from hiermem.model import HierMemModel
from hiermem.reranking import is_close, reranked
from hiermem.retrieval.keys import Question

BEST = 5
Scores = NDArray[np.floating]


def evaluate(
    pool: Pool,
    config: HierMemConfig,
    model: HierMemModel | None,
    log: ResultLog,
    encoder: str | None = None,
) -> dict[str, Any]:
    """Share of questions whose own paragraph is the best record, or among the five best.

    BM25 and the keys that need no model stand beside all keys together, and those beside reranking. The
    metrics are those of the last of these. An encoder follows alone, with BM25 and with the keys.

    Args:
        model: what makes the trained part of the search keys and reranks; None: neither is done.
        encoder: of dense retrieval, see `hiermem.eval.methods.dense`; None: there is none.
    """
    if not pool.questions:
        raise InputError("There is nothing to evaluate: raise --limit.")
    gold = _paragraphs_of(pool)
    counted = len(pool.paragraphs) if encoder is not None else max(BEST, config.asking.rerank)
    memory = LongTermMemory(config.longterm)
    hits, keys = _found(pool, memory, None, counted), _keys_of(memory)
    words = _scores(pool, WordIndex(pool.paragraphs))
    ranks = {"bm25": _best(words), keys: _segments(hits)}
    if model is not None and config.summary.search:
        memory = LongTermMemory(config.longterm, model.summary)
        hits, keys = _found(pool, memory, _read(pool, model, log), counted), _keys_of(memory)
        ranks[keys] = _segments(hits)
    if model is not None and config.asking.rerank:
        ranks[f"{keys}, reranked"] = _reranked(pool, hits, config.asking, model, log)
    metrics = _recall(list(ranks.values())[-1], gold)
    if encoder is not None:
        meaning = z_scores(_scores(pool, DenseIndex(pool.paragraphs, encoder)))
        ranks["dense"] = _best(meaning)
        ranks["bm25 + dense"] = _best(z_scores(words) + meaning)
        ranks[f"{keys} + dense"] = _best(z_scores(_scores_of(hits)) + meaning)
    rows = [{"system": name, **_recall(found, gold)} for name, found in ranks.items()]
    return {"metrics": metrics, "n": len(pool.questions), "rows": rows}


def _paragraphs_of(pool: Pool) -> list[int]:
    """The paragraph that answers each question.

    Raises:
        InputError: one is not known.
    """
    paragraphs = [question.paragraph for question in pool.questions if question.paragraph is not None]
    if len(paragraphs) < len(pool.questions):
        raise InputError("Only questions whose paragraph is known can be searched for: give their evidence.")
    return paragraphs


def _read(pool: Pool, model: HierMemModel, log: ResultLog) -> tuple[list[Tensor], list[Tensor]]:
    """Memory embeddings of all paragraphs and summaries of all questions, each ``[m, d]``."""

    @torch.inference_mode()
    def embedded(text: str) -> dict[str, Any]:
        return {"embedding": model.embed(text).tolist()}

    @torch.inference_mode()
    def summarised(text: str) -> dict[str, Any]:
        return {"summary": model.summarise(text).tolist()}

    paragraphs = tqdm(pool.paragraphs, desc="reading", disable=None)
    embeddings = [
        torch.tensor(log.row(f"paragraph {n}", embedded, text)["embedding"])
        for n, text in enumerate(paragraphs)
    ]
    questions = tqdm(pool.questions, desc="reading questions", disable=None)
    summaries = [
        torch.tensor(log.row(f"question {question.key}", summarised, question.text)["summary"])
        for question in questions
    ]
    return embeddings, summaries


def _found(
    pool: Pool, memory: LongTermMemory, read: tuple[Sequence[Tensor], Sequence[Tensor]] | None, count: int
) -> list[list[Hit]]:
    """The ``count`` best records for each question.

    Args:
        read: memory embeddings of the paragraphs and summaries of the questions, where the model makes them.
    """
    nothing = torch.zeros(0, dtype=torch.int32)
    embeddings: Sequence[Tensor | None] = [None] * len(pool.paragraphs)
    summaries: Sequence[Tensor | None] = [None] * len(pool.questions)
    if read is not None:
        embeddings, summaries = read
    for text, embedding in zip(pool.paragraphs, embeddings, strict=True):
        memory.write([SegmentRecord(0, nothing, 0, len(text), text, embedding)])
    return [
        memory.recall(Question(question.text, summary), count)
        for question, summary in zip(pool.questions, summaries, strict=True)
    ]


def _keys_of(memory: LongTermMemory) -> str:
    return " and ".join(key.name for key in memory.all_keys)


def _segments(hits: Sequence[Sequence[Hit]]) -> list[list[int]]:
    return [[hit.segment for hit in found] for found in hits]


def _scores_of(hits: Sequence[Sequence[Hit]]) -> Scores:
    """Scores of all records for each question, ``[q, n]`` float64, from hits that hold them all."""
    in_order = [sorted(found, key=lambda hit: hit.segment) for found in hits]
    return np.array([[hit.score for hit in found] for found in in_order])


def _reranked(
    pool: Pool, hits: Sequence[Sequence[Hit]], config: AskConfig, model: HierMemModel, log: ResultLog
) -> list[list[int]]:
    """The best records for each question, ranked again where scores leave open which is the best."""

    def row(question: str, found: Sequence[Hit]) -> dict[str, Any]:
        best = reranked(model.reader, found[: config.rerank], question)
        return {"best": [hit.segment for hit in best]}

    ranks = _segments(hits)
    close = [place for place, found in enumerate(hits) if is_close(found, 1, config.margin)]
    for place in tqdm(close, desc="reranking", disable=None):
        question = pool.questions[place]
        best = log.row(f"{question.key} reranked", row, question.text, hits[place])["best"]
        ranks[place][: config.rerank] = best
    return ranks


def _scores(pool: Pool, index: Index) -> Scores:
    """How well each paragraph fits each question, ``[q, n]``."""
    questions = tqdm(pool.questions, desc=type(index).__name__, disable=None, delay=2)
    return np.stack([index.scores(question.text) for question in questions])


def _best(scores: Scores) -> list[list[int]]:
    """The best paragraphs for each question, best first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :BEST].tolist()


def _recall(ranks: Sequence[Sequence[int]], gold: Sequence[int]) -> dict[str, float]:
    pairs = list(zip(ranks, gold, strict=True))
    return {
        "recall_at_1": sum(right in found[:1] for found, right in pairs) / len(pairs),
        f"recall_at_{BEST}": sum(right in found[:BEST] for found, right in pairs) / len(pairs),
    }
