"""A second look at recalled segments where the best one is in doubt: how likely each makes the question.

The search key matches words. What the backbone expects after a text says more (query likelihood, Ponte and
Croft, SIGIR 1998), but takes a reading of each: so only the best few are read, where two of them are close.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from hiermem.likelihood import last_logits
from hiermem.memory.longterm import Hit

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

WEIGHT = 1.0
"""Nats that a unit of the search key's score counts (docs/lab-notes.md)."""

ASKED = "\n\nQuestion:"
"""What stands between a text and a question."""


def in_doubt(hits: Sequence[Hit], doubt: float) -> bool:
    """Whether the second of ``hits``, best first, is behind by less than a share of the best one's score."""
    return len(hits) > 1 and hits[0].score - hits[1].score < doubt * hits[0].score


def reranked(model: "HierMemModel", hits: Sequence[Hit], question: str) -> list[Hit]:
    """The same hits, the best first by score and likelihood of the question together; scores stay."""
    fits = [WEIGHT * hit.score + _log_likelihood(model, hit.record.text, question) for hit in hits]
    return [hits[place] for place in sorted(range(len(hits)), key=lambda place: -fits[place])]


@torch.no_grad()
def _log_likelihood(model: "HierMemModel", text: str, question: str) -> float:
    """Of the question after the text, in nats, by the backbone with all its own heads."""
    before, asked = (
        model.tokenizer(part, add_special_tokens=False, verbose=False).input_ids
        for part in (text.strip() + ASKED, f" {question.strip()}")
    )
    ids = model.to_device(torch.tensor([[*before, *asked[:-1]]]))
    logits = last_logits(model, model.adapter.whole_memory(), ids, len(asked))
    return -float(F.cross_entropy(logits, model.to_device(torch.tensor(asked)), reduction="sum"))
