#!/usr/bin/env python3
"""Recall of search keys and of the passages that are shown, without a backbone: minutes, not an hour.

    benchmarks/passage_recall.py DATA [--split validation] [--language en] [--keys lexical,dense] [--halved]

All paragraphs of a split in a seeded order are one document, cut into segments as `hiermem read` cuts it.
Each question recalls segments and chooses passages as `hiermem ask` does, but for questions of which no word
is known. With --halved, half of the paragraphs are left out and their questions asked too: how well the
confidence tells them apart.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from hiermem.asking_config import AskConfig
from hiermem.bundled import BUNDLED_MODELS
from hiermem.eval.answer_match import ENGLISH, contains
from hiermem.eval.qa_data import Pool, load_pools
from hiermem.eval.tasks.documents import overlap
from hiermem.memory.longterm import LongTermConfig, LongTermMemory, SegmentRecord
from hiermem.memory.records import RecordTexts
from hiermem.passages import QueryTerms, select
from hiermem.retrieval.keys import Question
from hiermem.text import encode_with_spans

SEGMENT = 512
RECALLED = (1, 2, 4, 8)


def records_of(text: str, tokenizer: Any) -> Iterator[SegmentRecord]:
    """Segments of a document, the last one shorter."""
    starts = [start for start, _ in encode_with_spans(tokenizer, text)[1]][::SEGMENT]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True)):
        ids = torch.zeros(SEGMENT, dtype=torch.int32)
        yield SegmentRecord(number * SEGMENT, ids, start, end, text[start:end])


def rows(pool: Pool, memory: LongTermMemory, language: str) -> Iterator[dict[str, Any]]:
    """For each question, what is found and shown."""
    asking = AskConfig()
    for question in tqdm(pool.questions, desc="asking", disable=None):
        asked = Question(question.text)
        hits, evidence = memory.recall(asked, max(RECALLED)), pool.evidence(question)
        right = [overlap([(hit.record.start, hit.record.end)], evidence) for hit in hits]
        terms = QueryTerms(memory.key, question.text)
        limits = (asking.passage_characters, asking.least_score, memory.unit_scale(asked))
        selection = select(hits, RecordTexts(memory.records), terms, *limits)
        shown = " ".join(source.text for source in selection.sources)
        places = [(source.start, source.end) for source in selection.sources]
        yield {
            **{f"recall_at_{count}": any(right[:count]) for count in RECALLED},
            "source_at_1": overlap(places[:1], evidence),
            "shown_holds_answer": contains(shown, question.answers, language),
            "shown_characters": len(shown),
            "confidence": selection.confidence,
            "answerable": bool(question.answers),
        }


def told_apart(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How well the confidence tells questions that the document answers from others; where there is none,
    what is found is taken for an answer."""
    likely = np.array([1.0 if row["confidence"] is None else row["confidence"] for row in found])
    has = np.array([row["answerable"] for row in found])
    higher = np.mean(
        [(likely[has] > other).mean() + (likely[has] == other).mean() / 2 for other in likely[~has]]
    )
    least = AskConfig().least_confidence
    refused, wrongly = (likely[has] < least).mean(), (likely[~has] >= least).mean()
    return {"auc": float(higher), "refused": float(refused), "found_wrongly": float(wrongly)}


def main() -> int:
    parser = argparse.ArgumentParser(description="What search keys find and what is shown of it.")
    parser.add_argument("data", type=Path, metavar="DATA", help="Folder that `hiermem eval qa` takes.")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--language")
    parser.add_argument("--keys", default="lexical,dense", help="Search keys, or JSON with their settings.")
    parser.add_argument("--halved", action="store_true", help="Leave out half of the paragraphs.")
    given = parser.parse_args()
    keys = (
        json.loads(given.keys) if given.keys.startswith("{") else {name: {} for name in given.keys.split(",")}
    )
    (pool,) = load_pools(given.data, given.split, given.language, halved=given.halved)
    memory = LongTermMemory(LongTermConfig(keys=keys))
    tokenizer = AutoTokenizer.from_pretrained(str(BUNDLED_MODELS["smollm2"]()))
    for record in tqdm(list(records_of(pool.text, tokenizer)), desc="keys", disable=None):
        memory.write([record])
    found = list(rows(pool, memory, given.language or ENGLISH))
    answerable = [row for row in found if row["answerable"]]
    names = [name for name in found[0] if name not in ("confidence", "answerable")]
    result = {name: round(float(np.mean([row[name] for row in answerable])), 4) for name in names}
    if given.halved and any(row["confidence"] is not None for row in found):
        result |= {name: round(value, 4) for name, value in told_apart(found).items()}
    summary = {"keys": keys, "segments": len(memory), "n": len(found), **result}
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
