"""Texts ranked for questions by words, by meaning, by trained keys and by reranking."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hiermem.asking_config import AskConfig
from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.methods.dense import DenseIndex
from hiermem.eval.methods.hybrid import z_scores
from hiermem.eval.methods.passages import Index, WordIndex
from hiermem.eval.qa_data import Pool, PoolQuestion
from hiermem.eval.result_log import ResultLog
from hiermem.memory.longterm import Hit, LongTermMemory, SegmentRecord
from hiermem.memory.state_encoder import TokenVectors
from hiermem.model import HierMemModel
from hiermem.reader import Reader
from hiermem.reranking import is_close, reranked
from hiermem.retrieval.keys import Question
from hiermem.text import encode_with_spans, from_beginning

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
    hits, keys = _found(pool, memory, None, log, counted), _keys_of(memory)
    words = _scores(pool, WordIndex(pool.paragraphs))
    ranks = {"bm25": _best(words), keys: _segments(hits)}
    if model is not None and (config.summary.search or config.longterm.has_states):
        memory = LongTermMemory(config.longterm, model.summary, model.state_encoder)
        hits, keys = _found(pool, memory, model, log, counted), _keys_of(memory)
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


def _found(
    pool: Pool, memory: LongTermMemory, model: HierMemModel | None, log: ResultLog, count: int
) -> list[list[Hit]]:
    """The ``count`` best records for each question.

    Args:
        model: reads paragraphs and questions for the keys that are made of that; None: there are none.
    """
    nothing = torch.zeros(0, dtype=torch.int32)
    for number, text in enumerate(tqdm(pool.paragraphs, desc="records", disable=None, delay=2)):
        record = SegmentRecord(0, nothing, 0, len(text), text)
        if model is not None and memory.summary is not None:
            row = log.row(f"paragraph {number}", _embedded, model, text)
            record.embedding = torch.tensor(row["embedding"])
        if model is not None and memory.reads_states:
            record.token_vectors = _vectors(model.reader, text)
        memory.write([record])
    questions = tqdm(pool.questions, desc="questions", disable=None, delay=2)
    return [memory.recall(_asked(question, memory, model, log), count) for question in questions]


def _asked(
    question: PoolQuestion, memory: LongTermMemory, model: HierMemModel | None, log: ResultLog
) -> Question:
    """The question with what the keys are made of."""
    asked, text = Question(question.text), question.text
    if model is not None and memory.summary is not None:
        row = log.row(f"question {question.key}", _summarised, model, text)
        asked = replace(asked, summary=torch.tensor(row["summary"]))
    if model is not None and memory.reads_states:
        embedding, known = model.reader.sentence_embedding(text), model.reader.known_words(text)
        asked = replace(asked, embedding=embedding, known=known)
    return asked


@torch.inference_mode()
def _embedded(model: HierMemModel, text: str) -> dict[str, Any]:
    """Memory embeddings of a paragraph, ``[m, d]``."""
    return {"embedding": model.embed(text).tolist()}


@torch.inference_mode()
def _summarised(model: HierMemModel, text: str) -> dict[str, Any]:
    """Summary of a question, ``[m, d]``."""
    return {"summary": model.summarise(text).tolist()}


@torch.no_grad()
def _vectors(reader: Reader, text: str) -> TokenVectors:
    """Vectors of the tokens of a paragraph, read by itself."""
    ids, spans = encode_with_spans(reader.tokenizer, text)
    whole = from_beginning(reader.tokenizer, ids)
    vectors = reader.read_vectors(reader.adapter.whole_memory(), torch.tensor([whole], device=reader.device))
    ends = torch.tensor([end for _, end in spans], dtype=torch.int64)
    return TokenVectors(ends, vectors[len(whole) - len(ids) :])


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
