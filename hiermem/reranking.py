"""Reranking by query likelihood: how likely the backbone makes the question after each of a few segments.

The search key matches words. What the backbone expects after a text says more (Ponte and Croft, SIGIR 1998),
but takes a reading of each: so only a few are read, and only where scores leave open which are the best.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from hiermem.errors import NonFiniteError
from hiermem.likelihood import last_logits
from hiermem.memory.longterm import Hit
from hiermem.text import encode, from_beginning

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

WEIGHT = 1.0
"""Nats that a unit of the score counts; chosen for the lexical search key (docs/lab-notes.md)."""

PREFIX = "\n\nQuestion:"
"""What stands between a segment and the question, and where a small model asks itself the next one."""


def is_close(hits: Sequence[Hit], wanted: int, margin: float) -> bool:
    """Whether the last one wanted of ``hits``, best first, leads the next by less than a share of its score.

    Args:
        margin: that share.
    """
    if not 0 < wanted < len(hits):
        return False
    last, following = hits[wanted - 1].score, hits[wanted].score
    return last - following < margin * abs(last)


def reranked(model: "HierMemModel", hits: Sequence[Hit], question: str) -> list[Hit]:
    """The same hits, best first by score and log-likelihood of the question together; scores stay.

    Raises:
        NonFiniteError: a likelihood is NaN or infinite.
    """
    fits = [WEIGHT * hit.score + _log_likelihood(model, hit.record.text, question) for hit in hits]
    if not all(map(math.isfinite, fits)):
        raise NonFiniteError("The likelihood of the question is not finite: load the model in float32.")
    return [hits[place] for place in sorted(range(len(hits)), key=lambda place: -fits[place])]


@torch.no_grad()
def _log_likelihood(model: "HierMemModel", text: str, question: str) -> float:
    """Of the question after the text, in nats, by the backbone with full attention and all its own heads."""
    asked, prefix, segment = (
        encode(model.tokenizer, part) for part in (f" {question.strip()}", PREFIX, text.strip())
    )
    room = max(model.adapter.trained_range - len(asked) - len(prefix), 0)
    before = from_beginning(model.tokenizer, [*segment[:room], *prefix])
    ids = model.to_device(torch.tensor([[*before, *asked[:-1]]]))
    logits = last_logits(model, model.adapter.whole_memory(), ids, len(asked))
    return -float(F.cross_entropy(logits, model.to_device(torch.tensor(asked)), reduction="sum"))
