"""Asking a memory: recall the best segments, put them before the question, answer, name the sources."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hiermem.errors import InputError
from hiermem.memory.longterm import Hit, Record
from hiermem.memory.state import MemoryState

if TYPE_CHECKING:
    from hiermem.model import HierMemModel


@dataclass(frozen=True)
class Source:
    """Where an answer may come from.

    Attributes:
        segment: index of the recalled segment.
        start, end: its character span in the document.
        score: how well its search key fits the question.
        text: the characters of that span, exactly.
    """

    segment: int
    start: int
    end: int
    score: float
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer and the passages that were put before the question, best first."""

    text: str
    sources: list[Source]


def ask(
    model: "HierMemModel", memory: MemoryState, question: str, top_k: int | None, max_new_tokens: int
) -> Answer:
    """Answer ``question`` from ``memory``, which stays as it is."""
    if not question.strip():
        raise InputError("The question is empty: ask something.")
    k = model.config.longterm.top_k if top_k is None else top_k
    hits = recall(memory, question, k)
    ids = torch.tensor([prompt_ids(model, hits, question)], device=model.device)
    working = memory.working.copy()
    text = model.continue_from(working, ids, max_new_tokens)
    sources = [Source(h.segment, h.record.start, h.record.end, h.score, h.record.text) for h in hits]
    return Answer(text.strip(), sources)


def recall(memory: MemoryState, question: str, k: int) -> list[Hit]:
    """The best ``k`` segments for a question, best first, without those still held in working memory."""

    def is_gone(record: Record) -> bool:
        end = record.first_token + len(record.ids)
        return not bool(memory.working.held_everywhere(record.first_token, end).all())

    return memory.longterm.search(question, k, wanted=is_gone) if k else []


def prompt_ids(model: "HierMemModel", hits: list[Hit], question: str) -> list[int]:
    """Recalled tokens in document order, then the question."""
    ids: list[int] = []
    newline = model.tokenizer("\n\n", add_special_tokens=False).input_ids
    for hit in sorted(hits, key=lambda hit: hit.segment):
        ids += newline + hit.record.ids.tolist()
    asked = f"\n\nQuestion: {question.strip()}\nAnswer:"
    return ids + model.tokenizer(asked, add_special_tokens=False).input_ids
