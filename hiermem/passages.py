"""Passages: the sentences and rows of recalled segments that fit a question best.

A small model answers better from little text, so whole segments are not shown to it. Units of text are
compared with the question as a cosine, so that long ones have no advantage. A word counts by how rare it is
in the document times how rare it is among the units at hand: the first tells words of the language from
those of the matter, the second tells the rows of one table apart.

Where a memory has search keys of units, these say first how well a unit fits, and its words beside them.
What stands around the best unit in its paragraph is shown, too, where there is room: it often holds the rest
of the answer.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hiermem.memory.longterm import Hit, SegmentRecord
from hiermem.memory.unit_index import UnitScale
from hiermem.retrieval.keys.lexical import LexicalKey, idf
from hiermem.retrieval.units import LONGEST, Unit, split
from hiermem.retrieval.words import are_forms, words

_Place = tuple[int, tuple[int, int] | None]  # of a header
_WORDS = 0.1  # what the best unit by words gains beside the inner products of search keys
_COVERED = 0.7  # share of a question's words, by weight, that stands together where they are asked for
_LEAST = 1e-9
_ALL = 1 - 1e-6  # of that share: but for rounding, all of them
_SHORTEST_KEY = 3.0  # a cosine counts at least this length of a key, about nine words: fewer say little

FUNCTION_WORDS = """
a about all also an and any are as at be been being but by can could did do does done for from had has have he
her hers him his how i if in into is it its just me more most my no not of on or our out over she so some such
than that the their them then there these they this those to too up was we were what when where which while
who whom whose why with would you your
"""
"""English words that do not tell what a question is about; none that is a name as well, such as `will`."""


@dataclass(frozen=True)
class Source:
    """Where an answer may come from.

    Attributes:
        segment: index of the recalled segment in which the passage begins, in its document.
        start: first character of the passage in the document.
        end: character after its last; it may be in the next segment.
        score: how well the passage fits the question, against others of the same answer; where whole
            segments are taken, how well the segment does.
        text: the characters of that span, exactly.
        document: name of the document; empty: there is one, which the caller knows.
        page: the page that it begins on, from 1; None: the document has no pages.
        chapter: the heading over its beginning; empty: none is known.
        line: the line that it begins in, from 1, of a document without pages.
    """

    segment: int
    start: int
    end: int
    score: float
    text: str
    document: str = ""
    page: int | None = None
    chapter: str = ""
    line: int | None = None


class SegmentTexts(Protocol):
    """Texts that segments have."""

    def segment_text(self, document: str, segment: int) -> str:
        """The text of a segment of a document; empty where there is none of that number."""


@dataclass(frozen=True)
class Selection:
    """Passages that stand before a question.

    Attributes:
        sources: best first.
        confidence: how likely the document holds an answer, in 0..1; None: without search keys of units whose
            odds are known, there is no telling.
    """

    sources: list[Source]
    confidence: float | None = None


class QueryTerms:
    """Units of a question that tell what it is about: all but function words, unless it has no others.

    Args:
        key: the search key of the memory, with its statistics.
    """

    def __init__(self, key: LexicalKey, question: str) -> None:
        self.key = key
        common = set(key.units(FUNCTION_WORDS)[0].tolist())
        ids, counts = key.units(question)
        telling = np.array([unit not in common for unit in ids.tolist()], bool)
        telling = telling if telling.any() else ~telling
        self.ids: list[int] = ids[telling].tolist()
        self.weights = counts[telling] * key.idf(ids[telling])

    def saturated(self, text: str) -> tuple[NDArray[np.float64], float]:
        """BM25's count of each of the question's units in ``text``, and the length of all of its counts."""
        ids, counts = self.key.units(text)
        values = self.key.saturated(counts)
        of_unit = dict(zip(ids.tolist(), values.tolist(), strict=True))
        return np.array([of_unit.get(unit, 0.0) for unit in self.ids]), float(np.linalg.norm(values))

    def covered(self, text: str) -> float:
        """Share of the units, by weight, that stand in ``text``."""
        present = set(self.key.units(text)[0].tolist())
        held = sum(weight for unit, weight in zip(self.ids, self.weights, strict=True) if unit in present)
        return float(held / max(float(self.weights.sum()), _LEAST))

    def are_in(self, text: str) -> bool:
        """Whether ``text`` has one of the units."""
        return not set(self.ids).isdisjoint(self.key.units(text)[0].tolist())

    def are_known(self, record: SegmentRecord | None) -> bool:
        """Whether any segment so far has one of the units, or the ``record`` that is still open."""
        return self.key.knows(self.ids) or (record is not None and self.are_in(record.text))


def with_forms(terms: QueryTerms, question: str, texts: Iterable[str]) -> str:
    """A question of which no word stands in the texts, with the forms of its words that do."""
    version = terms.key.config.version
    query = set(words(question, version)) - set(words(FUNCTION_WORDS, version))
    known = set(chain.from_iterable(words(text, version) for text in texts))
    forms = [word for word in sorted(known) if any(are_forms(word, term) for term in query)]
    return " ".join([question, *forms])


@dataclass(frozen=True)
class _Stretch:
    """Recalled segments that follow one another, with some of the text around them.

    Attributes:
        hits: in document order.
        start: where ``text`` begins in the document.
    """

    hits: list[Hit]
    start: int
    text: str

    @cached_property
    def units(self) -> list[Unit]:
        """The units of which a part is in the segments, so that none is cut where a segment ends."""
        first, last = self.hits[0].record.start - self.start, self.hits[-1].record.end - self.start
        return [unit for unit in split(self.text) if unit.end > first and unit.start < last]

    def source(self, start: int, end: int, score: float) -> Source:
        """A span of the text as a source."""
        hit = next(hit for hit in self.hits if hit.record.end > self.start + start)
        span = (self.start + start, self.start + end)
        return Source(hit.segment, *span, score, self.text[start:end], hit.document)

    def scores(self) -> NDArray[np.float64]:
        """Score of each of `units` by search keys, ``[U]``: the best of those that share half of the shorter
        one with it at least; -inf where none does."""
        hits = [unit for hit in self.hits for unit in hit.units]
        starts, ends = np.array([unit.start for unit in hits]), np.array([unit.end for unit in hits])
        values, found = np.array([unit.score for unit in hits]), []
        for unit in self.units:
            start, end = self.start + unit.start, self.start + unit.end
            shared = np.minimum(ends, end) - np.maximum(starts, start)
            same = shared >= np.minimum(ends - starts, end - start) / 2
            found.append(values[same].max(initial=-np.inf))
        return np.array(found)


def select(
    hits: Sequence[Hit],
    segments: SegmentTexts,
    terms: QueryTerms,
    characters: int,
    least_score: float,
    scale: UnitScale | None = None,
) -> Selection:
    """The best units of all hits, best first; neighbours are one passage. Room that is left is filled with
    what stands around the best unit in its paragraph, unless that unit has all the question's words: then it
    answers by itself, and a small model answers better from less.

    Without a word in common there are none, unless search keys of units found the hits.

    Args:
        segments: the text of any segment.
        terms: the question, under the statistics of the memory.
        characters: length of all passages together; 0 takes whole segments.
        least_score: units below this share of the best score are left out.
        scale: of the scores of units, where there are search keys of those.
    """
    stretches = list(_stretches(hits, segments))
    units = [(stretch, unit) for stretch in stretches for unit in stretch.units]
    if not units:
        return Selection([])
    fits, confidence = _fits(units, terms), None
    if scale is not None:
        scores = np.concatenate([stretch.scores() for stretch in stretches])
        headers = np.array([unit.is_header for _, unit in units])
        confidence = _confidence(units, terms, fits, scores, scale)
        fits = _together(fits, scores, headers, scale)
    if not characters:
        whole = [(hit, hit.record.text) for hit in hits]
        shown = [(hit, text) for hit, text in whole if scale is not None or terms.are_in(text)]
        return Selection(
            [
                Source(hit.segment, hit.record.start, hit.record.end, hit.score, text, hit.document)
                for hit, text in shown
            ],
            confidence,
        )
    stretch, unit = units[int(fits.argmax())]
    fills = terms.covered(stretch.text[unit.start : unit.end]) < _ALL
    chosen = _best(fits, units, characters, least_score, fills)
    sources = []
    for _, run in groupby(enumerate(chosen), lambda pair: (pair[1] - pair[0], id(units[pair[1]][0]))):
        members = [index for _, index in run]
        (stretch, first), (_, last) = units[members[0]], units[members[-1]]
        source = stretch.source(first.start, last.end, float(fits[members].max()))
        sources.append((first.is_header and first == last, source))
    return Selection(
        [source for _, source in sorted(sources, key=lambda pair: (pair[0], -pair[1].score))], confidence
    )


def _together(
    words: NDArray[np.float64], scores: NDArray[np.float64], headers: NDArray[np.bool_], scale: UnitScale
) -> NDArray[np.float64]:
    """How far units stand out by search keys and words together, 1 for the best, 0 for the average, ``[U]``.

    Args:
        words: how well each fits by its words.
        scores: what search keys say of each.
        headers: which of them fit nothing by themselves.
        scale: of the scores.
    """
    known = np.isfinite(scores)
    total = np.where(known, scores, scores[known].min(initial=np.inf) if known.any() else 0.0)
    total += _WORDS * scale.weight * words / max(float(words.max()), _LEAST)
    fits = np.zeros(len(total))
    if not headers.all():
        over = total[~headers] - total[~headers].mean()
        fits[~headers] = over / over.max() if over.max() > _LEAST else 1.0
    return fits


def _confidence(
    units: Sequence[tuple[_Stretch, Unit]],
    terms: QueryTerms,
    words: NDArray[np.float64],
    scores: NDArray[np.float64],
    scale: UnitScale,
) -> float | None:
    """How likely there is an answer: by the odds of the best unit's inner product, which documents of any
    length have alike; or, where that is more, the share of the question's words that stand together, which is
    enough where its codes do."""
    if scale.odds is None:
        return None
    places = {int(words.argmax()), int(scores.argmax())}
    texts = [stretch.text[unit.start : unit.end] for stretch, unit in (units[place] for place in places)]
    covered = max(map(terms.covered, texts))
    if any(map(scale.codes_are_in, texts)):
        covered = max(covered, _COVERED)
    rise, middle = scale.odds
    own = max((unit.own for stretch, _ in units for hit in stretch.hits for unit in hit.units), default=0.0)
    likely = (1 + math.tanh(rise * (own - middle) / 2)) / 2
    return max(likely, covered) if covered >= _COVERED else likely


def _stretches(hits: Sequence[Hit], segments: SegmentTexts) -> Iterator[_Stretch]:
    """The hits in the order of documents and segments, those together that follow one another."""
    ordered = sorted(hits, key=lambda hit: (hit.document, hit.segment))
    for _, run in groupby(enumerate(ordered), lambda pair: (pair[1].document, pair[1].segment - pair[0])):
        members = [hit for _, hit in run]
        document, first, last = members[0].document, members[0].segment, members[-1].segment
        before = segments.segment_text(document, first - 1)[-LONGEST:]
        after = segments.segment_text(document, last + 1)[:LONGEST]
        text = before + "".join(hit.record.text for hit in members) + after
        yield _Stretch(members, members[0].record.start - len(before), text)


def _fits(units: Sequence[tuple[_Stretch, Unit]], terms: QueryTerms) -> NDArray[np.float64]:
    """Fit of each unit to the question, ``[U]``; a header by itself fits nothing.

    A row has the words of its header as well, but by their rarity among the units alone: where the header is
    in one segment of many, its words are rare in the document and say nothing of its rows.
    """
    matches = [terms.saturated(stretch.text[unit.start : unit.end]) for stretch, unit in units]
    of_header: dict[_Place, NDArray[np.float64]] = {}
    for stretch, unit in units:
        if unit.header and _place(stretch, unit) not in of_header:
            of_header[_place(stretch, unit)] = terms.saturated(stretch.text[slice(*unit.header)])[0]
    none = np.zeros(len(terms.ids))
    counts = np.stack([values for values, _ in matches])
    inherited = np.stack([of_header.get(_place(stretch, unit), none) for stretch, unit in units])
    inherited[counts > 0] = 0
    rarity = idf(((counts + inherited) > 0).sum(0), len(units))
    weights = terms.weights * rarity
    scores = counts @ weights + inherited @ np.minimum(weights, rarity)
    fits = scores / np.maximum([length for _, length in matches], _SHORTEST_KEY)
    fits[[unit.is_header for _, unit in units]] = 0
    return np.asarray(fits, np.float64)


def _best(
    fits: NDArray[np.float64],
    units: Sequence[tuple[_Stretch, Unit]],
    characters: int,
    least_score: float,
    fills: bool,
) -> list[int]:
    """Indices, ascending, of the best units that have room together, with their headers where these have it;
    the best one always has. Those around it fill what is left, if they are to."""
    sizes = [unit.end - unit.start for _, unit in units]
    headers = {_place(stretch, unit): at for at, (stretch, unit) in enumerate(units) if unit.is_header}
    room, chosen = characters, set[int]()
    for index in np.argsort(-fits, kind="stable").tolist():
        if fits[index] <= 0 or fits[index] < fits.max() * least_score:
            break
        if chosen and sizes[index] > room:
            continue
        header = headers.get(_place(*units[index]), index)
        chosen.add(index)
        room -= sizes[index]
        if header not in chosen and sizes[header] <= room:
            chosen.add(header)
            room -= sizes[header]
    for index in _around(int(fits.argmax()), units) if chosen and fills else ():
        if index in chosen:
            continue
        if sizes[index] > room:
            break
        chosen.add(index)
        room -= sizes[index]
    return sorted(chosen)


def _around(best: int, units: Sequence[tuple[_Stretch, Unit]]) -> list[int]:
    """Indices of the units of one's paragraph, the nearest first. A row is a paragraph by itself."""
    stretch, unit = units[best]
    same = (
        at for at, (other, near) in enumerate(units) if other is stretch and near.paragraph == unit.paragraph
    )
    return sorted(same, key=lambda at: (abs(at - best), at < best))


def _place(stretch: _Stretch, unit: Unit) -> _Place:
    """Key that units under the same header share."""
    return id(stretch), unit.header
