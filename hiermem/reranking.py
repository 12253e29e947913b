"""Reranking by query likelihood: how likely the backbone makes the question after each of a few segments.

The search key matches words. What the backbone expects after a text says more (Ponte and Croft, SIGIR 1998),
but takes a reading of each: so only a few are read, and only where scores leave open which are the best.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from hiermem.errors import NonFiniteError
from hiermem.memory.longterm import Hit
from hiermem.reader import Reader
from hiermem.text import encode, from_beginning

WEIGHT = 1.0
"""Nats that a unit of the score counts; chosen for the lexical search key (docs/lab-notes/search.md)."""

PREFIX = "\n\nQuestion:"
"""Words between a segment and the question; a small model asks itself the next question by them."""


def is_close(hits: Sequence[Hit], top_k: int, margin: float) -> bool:
    """Whether the last of the ``top_k`` best ``hits`` leads the next by less than a share of its score.

    Args:
        hits: best first.
        margin: that share.
    """
    if not 0 < top_k < len(hits):
        return False
    last, following = hits[top_k - 1].score, hits[top_k].score
    return last - following < margin * abs(last)


def reranked(reader: Reader, hits: Sequence[Hit], question: str) -> list[Hit]:
    """The same hits, best first by score and log-likelihood of the question together; scores stay.

    Raises:
        NonFiniteError: a likelihood is NaN or infinite.
    """
    fits = [WEIGHT * hit.score + _log_likelihood(reader, hit.record.text, question) for hit in hits]
    if not all(map(math.isfinite, fits)):
        raise NonFiniteError("The likelihood of the question is not finite: load the model in float32.")
    return [hits[place] for place in sorted(range(len(hits)), key=lambda place: -fits[place])]


@torch.no_grad()
def _log_likelihood(reader: Reader, text: str, question: str) -> float:
    """Of the question after the text, in nats, by the backbone with full attention and all its own heads."""
    query, prefix, segment = (
        encode(reader.tokenizer, part) for part in (f" {question.strip()}", PREFIX, text.strip())
    )
    room = max(reader.adapter.trained_range - len(query) - len(prefix), 0)
    context = from_beginning(reader.tokenizer, [*segment[:room], *prefix])
    ids = torch.tensor([[*context, *query]], device=reader.device)
    logits = reader.logits(reader.adapter.whole_memory(), ids[:, :-1], len(query))[0]
    return -float(F.cross_entropy(logits, ids[0, len(context) :], reduction="sum"))
