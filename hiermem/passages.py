"""Passages: the sentences of recalled segments that fit a question best.

A small model answers better from little text, so whole segments are not shown to it. Sentences are compared
with the question by the segments' own search key, as a cosine, so that long ones have no advantage.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch

from hiermem.memory.longterm import Hit
from hiermem.retrieval.lexical import LexicalKey

# Where a sentence may end, with the quotes, brackets and white space after it.
_END = re.compile(r"[.!?]+[\"'”’)\]]*\s+|[。！？]+[」』）]*\s*")
# Full stops of titles, initials and shortened words, which end none.
_SHORTENED = re.compile(
    r"\b(?:[A-HJ-Z]|Mrs?|Ms|Dr|Prof|St|Messrs|Mme|Mlle|Capt|Col|Gen|Lieut|Lt|Sergt|Sgt|Rev|Hon|Jr|Sr|Figs?"
    r"|vs|cf|al|approx|e\.g|i\.e|[ap]\.m)\.$"
)
_LONGEST = 300  # characters of a sentence; a longer one is cut between words
_SHORTEST_KEY = 3.0  # a cosine counts at least this length of a key, about nine words: fewer say little


@dataclass(frozen=True)
class Source:
    """Where an answer may come from.

    Attributes:
        segment: index of the recalled segment.
        start, end: character span of the passage in the document.
        score: how well the passage fits the question, against others of the same answer; where whole
            segments are taken, how well the segment does.
        text: the characters of that span, exactly.
    """

    segment: int
    start: int
    end: int
    score: float
    text: str


def select(
    hits: Sequence[Hit], question: str, key: LexicalKey, characters: int, least_score: float
) -> list[Source]:
    """The best sentences of all hits, best first; neighbours are one passage.

    Args:
        key: the search key of the memory, with its statistics.
        characters: length of all passages together; 0 takes whole segments.
        least_score: sentences below this share of the best score are left out.
    """
    texts = [hit.record.text for hit in hits]
    if not characters:
        return [_source(hit, text, 0, len(text), hit.score) for hit, text in zip(hits, texts, strict=True)]
    spans = [(place, a, z) for place, text in enumerate(texts) for a, z in sentences(text)]
    if not spans:
        return []
    keys = key.document_keys([texts[place][a:z] for place, a, z in spans])
    fits = (keys @ key.query_key(question)) / keys.norm(dim=1).clamp_min(_SHORTEST_KEY)
    chosen = _best(fits, [z - a for _, a, z in spans], characters, least_score)
    sources = []
    for _, run in groupby(enumerate(chosen), lambda pair: (pair[1] - pair[0], spans[pair[1]][0])):
        members = [index for _, index in run]
        (place, start, _), (_, _, end) = spans[members[0]], spans[members[-1]]
        sources.append(_source(hits[place], texts[place], start, end, float(fits[members].max())))
    return sorted(sources, key=lambda source: -source.score)


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences of ``text``, which they cover; none is longer than 300 characters.

    A heading has no full stop, so it goes with the sentence after it.
    """
    bounds = [0]
    for end in _ends(text):
        while end - bounds[-1] > _LONGEST:
            space = text.rfind(" ", bounds[-1] + 1, bounds[-1] + _LONGEST)
            bounds.append(space + 1 if space > 0 else bounds[-1] + _LONGEST)
        bounds.append(end)
    return list(pairwise(bounds))


def _ends(text: str) -> Iterator[int]:
    for match in _END.finditer(text):
        at, end = match.span()
        shortened = text[at] == "." and _SHORTENED.search(text, max(at - 8, 0), at + 1)
        if end < len(text) and not shortened and not text[end].islower():
            yield end
    if text:
        yield len(text)


def _best(fits: torch.Tensor, lengths: Sequence[int], characters: int, least_score: float) -> list[int]:
    """Indices, ascending, of the best sentences that have room together; the best one always has."""
    order = fits.argsort(descending=True, stable=True).tolist()
    least = float(fits.max()) * least_score if least_score else -math.inf
    chosen, room = order[:1], characters - lengths[order[0]]
    for index in order[1:]:
        if fits[index] < least:
            break
        if lengths[index] <= room:
            chosen.append(index)
            room -= lengths[index]
    return sorted(chosen)


def _source(hit: Hit, text: str, start: int, end: int, score: float) -> Source:
    origin = hit.record.start
    return Source(hit.segment, origin + start, origin + end, score, text[start:end])
