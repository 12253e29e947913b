"""A training-free search key that works like BM25 through one inner product.

A *unit* is a folded word (`words.py`) cut to its first characters (cheap stemming), a whole word
with digits, or a character bigram in scripts without spaces. Keys have the character n-grams of words
as well, by which compounds and words of many endings find each other (McNamee and Mayfield 2004). The
vector of a unit or n-gram comes from its hash, sparse and pseudo-random (count sketch: Charikar et al.
2002; feature hashing: Weinberger et al. 2009), so two are nearly orthogonal and neither a vocabulary
nor a tokenizer is needed.

A segment's key is the sum of its units' vectors, each weighted by the saturated count of BM25
(Robertson and Zaragoza 2009). The weight of rare units (idf) sits in the query alone, so a key
depends on its segment's text only: it stays as it is while the document grows.

The price is cross-talk from the common units in every key. A small ridge regression takes most of
it out of the query: its inner product is the idf with the question's own units and near zero with
the units that vary most between segments (compare Lupas and Verdu 1989).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, repeat
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hiermem.errors import InputError
from hiermem.retrieval.keys.base import Keyed, Question, SearchKey
from hiermem.retrieval.words import UNSPACED, VERSION, words
from hiermem.settings import check_settings

_NONZEROS = 8  # signed positions in the vector of one unit
_COUNTED_AT_ONCE = 64  # segments, so that reading does not copy the table of all units for each
_RIDGE, _STEPS = 0.3, 10  # of the regression: ridge over a key entry's variance; iterations
_LONGEST_WORD = 20  # characters; a longer word outside ASCII must be of a script without spaces
_GRAMMED = 40  # first letters of a word that has n-grams: more are no word

_RUN = re.compile(rf"[{UNSPACED}]+|[^{UNSPACED}]+")
_UNSPACED_RUN = re.compile(rf"[{UNSPACED}]")
_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LexicalKeyConfig:
    """Settings of a :class:`LexicalKey`; keys made with different settings do not compare.

    dim: length of a key in floats; the noise of a score falls as ``1 / sqrt(dim)``.
    prefix: characters kept of a word.
    saturation: BM25's ``k1``; at 0 it does not matter how often a unit stands in its segment.
    cancelled: how many of the most varying units a query is cleaned of; 0 switches that off.
    version: how words are folded; see :func:`hiermem.retrieval.words.words`.
    grams: characters of the n-grams that words have beside; 0: they have none.
    """

    dim: int = 4096
    prefix: int = 7
    saturation: float = 0.5
    cancelled: int = 4096
    version: int = VERSION
    grams: int = 4

    def __post_init__(self) -> None:
        check_settings(self)
        if min(self.dim, self.prefix) < 1:
            raise InputError("LexicalKeyConfig.dim and .prefix must be at least 1.")
        if not (0 <= self.saturation < np.inf and min(self.cancelled, self.grams) >= 0):
            raise InputError("LexicalKeyConfig.saturation, .cancelled and .grams must be 0 or more.")
        if self.version not in range(1, VERSION + 1):
            raise InputError(
                f"LexicalKeyConfig.version must be from 1 to {VERSION}, not {self.version!r}: a newer one "
                f"needs a newer hiermem."
            )


class _Sketch(NamedTuple):
    """The vectors of U units in D dimensions: positions and values, each [U, nonzeros]."""

    positions: _Ints
    values: _Floats
    dim: int

    def dot(self, vector: _Floats) -> _Floats:
        """Inner product of ``vector`` [D] with every unit: float64 [U]."""
        return np.asarray((vector[self.positions] * self.values).sum(1), np.float64)

    def total(self, weights: _Floats) -> _Floats:
        """Sum of the units' vectors, weighted by ``weights`` [U]: float64 [D]."""
        spread = self.values * weights[:, None]
        return np.bincount(self.positions.ravel(), spread.ravel(), self.dim).astype(np.float64)


class LexicalKey(SearchKey):
    """Search key of words; reading a document only counts in how many segments each unit stands."""

    name: ClassVar[str] = "lexical"
    supplied: ClassVar[frozenset[str]] = frozenset({"config"})

    def __init__(self, config: LexicalKeyConfig | None = None, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.config = config or LexicalKeyConfig()
        self._segments = 0
        # How many segments each unit stands in, but for the newest ones, whose units stand beside.
        self._counts: tuple[Counter[int], tuple[list[int], ...]] = (Counter(), ())
        self._common: tuple[_Sketch, _Floats, float] | None = None

    @property
    def width(self) -> int:
        return self.config.dim

    def units(self, text: str) -> tuple[_Ints, _Floats]:
        """The distinct units of ``text``: int64 hashes [U] and float64 counts [U]."""
        return _counted(map(_unit_ids, words(text, self.config.version), repeat(self.config.prefix)))

    def _features(self, text: str) -> tuple[_Ints, _Floats]:
        """The same with the n-grams of words, as keys have them."""
        found = words(text, self.config.version)
        units = map(_unit_ids, found, repeat(self.config.prefix))
        return _counted(chain(units, map(_gram_ids, found, repeat(self.config.grams))))

    def observe(self, records: Sequence[Keyed]) -> None:
        """Count finished segments; later query keys change by it, document keys never do."""
        for record in records:
            self._observe(record.text)

    def _observe(self, text: str) -> None:
        units, (counted, newest) = self._features(text)[0].tolist(), self._counts
        if len(newest) == _COUNTED_AT_ONCE:
            counted, newest = self._frequency, ()
        self._segments, self._common = self._segments + 1, None
        self._counts = counted, (*newest, units)

    @property
    def _frequency(self) -> Counter[int]:
        """In how many segments each unit stands; a new table, so that copies of this key keep theirs."""
        counted, newest = self._counts
        if newest:
            counted = Counter(counted)
            for units in newest:
                counted.update(units)
            self._counts = counted, ()
        return counted

    def document_keys(self, records: Sequence[Keyed]) -> torch.Tensor:
        """Keys of segments, each of its own text alone: float32 [N, D]; an empty text gives 0."""
        keys = np.zeros((len(records), self.config.dim), np.float32)
        for key, record in zip(keys, records, strict=True):
            ids, counts = self._features(record.text)
            key[:] = self._sketch(ids).total(self.saturated(counts))
        return torch.from_numpy(keys)

    def query_key(self, question: Question) -> torch.Tensor:
        """Key of a question under the statistics so far: float32 [D]; an empty text gives 0."""
        ids, counts = self._features(question.text)
        return torch.from_numpy(self._clean(self._sketch(ids), counts * self.idf(ids)).astype(np.float32))

    def saturated(self, counts: _Floats) -> _Floats:
        """BM25's weight of counts of units in a text."""
        k1 = self.config.saturation
        return np.asarray((k1 + 1) * counts / (k1 + counts), np.float64)

    def knows(self, ids: Iterable[int]) -> bool:
        """Whether one of these units stands in a segment so far."""
        return not self._frequency.keys().isdisjoint(ids)

    def idf(self, ids: _Ints) -> _Floats:
        """How rare units are in the segments so far: float64 [U]."""
        frequency = self._frequency
        counts = np.array([frequency[unit] for unit in ids.tolist()], np.float64)
        return idf(counts, self._segments)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The statistics in int64: ``segments`` [1], ``unit_ids`` [V] ascending, ``frequency``."""
        frequency = self._frequency
        ids = sorted(frequency)
        table = {"unit_ids": ids, "frequency": [frequency[unit] for unit in ids]}
        table["segments"] = [self._segments]
        return {name: torch.tensor(row, dtype=torch.int64) for name, row in table.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over statistics that :meth:`state_dict` gave, in place of the present ones."""
        segments, frequency = _statistics([state])
        self._segments, self._counts, self._common = segments, (frequency, ()), None

    def add_statistics(self, states: Sequence[Mapping[str, torch.Tensor]]) -> None:
        segments, frequency = _statistics(states)
        counted = Counter(self._frequency)  # a new table
        counted.update(frequency)
        self._segments, self._counts, self._common = self._segments + segments, (counted, ()), None

    def remove_statistics(self, states: Sequence[Mapping[str, torch.Tensor]]) -> None:
        segments, frequency = _statistics(states)
        counted = Counter(self._frequency)
        counted.subtract(frequency)
        if segments > self._segments or min((counted[unit] for unit in frequency), default=0) < 0:
            raise InputError("These statistics were never added: they cannot be removed.")
        for unit in frequency:
            if not counted[unit]:
                del counted[unit]
        self._segments, self._counts, self._common = self._segments - segments, (counted, ()), None

    def _sketch(self, ids: _Ints) -> _Sketch:
        """Pseudo-random vectors of units, of length 1 but for collisions, through SplitMix64."""
        bits = np.arange(1, _NONZEROS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = bits + ids.view(np.uint64)[:, None]
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
        positions = (bits >> np.uint64(1)) % np.uint64(self.config.dim)
        values = np.where(bits & np.uint64(1), 1.0, -1.0) / np.sqrt(_NONZEROS)
        return _Sketch(positions.astype(np.int64), values, self.config.dim)

    def _measure(self) -> tuple[_Sketch, _Floats, float]:
        """The most varying units, their variances [K], and the variance of a key's entry."""
        ids = np.array([*self._frequency], np.int64)
        share = np.array([*self._frequency.values()], np.float64) / max(self._segments, 1)
        variance = share * (1 - share)  # of a unit's presence in a segment
        order, k = np.lexsort((ids, -variance)), self.config.cancelled
        ids, variance = ids[order], variance[order]  # sums, too, do not depend on reading order
        return self._sketch(ids[:k]), variance[:k], float(variance.sum()) / self.config.dim

    def _clean(self, query: _Sketch, weights: _Floats) -> _Floats:
        """The vector [D] that answers ``weights`` to the query's units, little to the others."""
        if not self.config.cancelled:
            return query.total(weights)
        common, variance, noise = self._common = self._common or self._measure()

        def normal(vector: _Floats) -> _Floats:
            kept = query.total(query.dot(vector))
            return kept + common.total(variance * common.dot(vector)) + _RIDGE * noise * vector

        return _conjugate_gradient(normal, query.total(weights))


def idf(frequency: _Floats, texts: int) -> _Floats:
    """BM25's weight of units that stand in ``frequency`` [U] of so many texts; never negative."""
    return np.asarray(np.log1p((texts - frequency + 0.5) / (frequency + 0.5)), np.float64)


def _statistics(states: Sequence[Mapping[str, torch.Tensor]]) -> tuple[int, Counter[int]]:
    """Segments, and in how many of them each unit stands, of several statistics together.

    Raises:
        InputError: they are none.
    """
    try:
        sizes = [int(state["segments"].item()) for state in states]
        tables = [(state["unit_ids"].numpy(), state["frequency"].numpy()) for state in states]
        nothing = np.zeros(0, np.int64)
        ids = np.concatenate([nothing, *(units for units, _ in tables)])
        counts = np.concatenate([nothing, *(found for _, found in tables)])
        possible = all(
            len(units) == len(found) and (not len(found) or 1 <= found.min() <= found.max() <= size)
            for (units, found), size in zip(tables, sizes, strict=True)
        )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"These are not the statistics of a search key: {error}.") from error
    if not possible:
        raise InputError("In these statistics a unit stands in more segments than there are.")
    units, places = np.unique(ids, return_inverse=True)
    together = np.bincount(places, counts, len(units)).astype(np.int64)
    return sum(sizes), Counter(dict(zip(units.tolist(), together.tolist(), strict=True)))


def _counted(ids: Iterable[tuple[int, ...]]) -> tuple[_Ints, _Floats]:
    """Distinct ones of ``ids``, int64 [U], and how often each is there, float64 [U]."""
    counts = Counter(chain.from_iterable(ids))
    return np.array([*counts], np.int64), np.array([*counts.values()], np.float64)


@lru_cache(maxsize=1 << 14)
def _unit_ids(word: str, prefix: int) -> tuple[int, ...]:
    """The units of one case-folded word, as hashes."""
    units: list[str] = []
    for run in [word] if word.isascii() else _RUN.findall(word):
        if _is_unspaced(run):
            units += [run[i : i + 2] for i in range(max(1, len(run) - 1))]
        else:
            units.append(run if re.search(r"\d", run) else run[:prefix])
    return _hashed(units)


@lru_cache(maxsize=1 << 14)
def _gram_ids(word: str, grams: int) -> tuple[int, ...]:
    """The n-grams of a word's first letters, with marks at its ends, as hashes that no unit has. Words with
    digits have none, nor do scripts without spaces."""
    if not grams or re.search(r"\d", word) or any(map(_is_unspaced, _RUN.findall(word))):
        return ()
    marked = f"<{word[:_GRAMMED]}>"
    return _hashed([f"#{marked[at : at + grams]}" for at in range(len(marked) - grams + 1)])


def _is_unspaced(run: str) -> bool:
    """Whether a run of characters is of a script without spaces, known or by its length."""
    return bool(_UNSPACED_RUN.match(run)) or (len(run) > _LONGEST_WORD and not run.isascii())


def _hashed(units: Iterable[str]) -> tuple[int, ...]:
    """Signed 64-bit hashes, the same on every machine."""
    digests = (blake2b(unit.encode("utf-8", "replace"), digest_size=8) for unit in units)
    return tuple(int.from_bytes(digest.digest(), "little", signed=True) for digest in digests)


def _conjugate_gradient(operator: Callable[[_Floats], _Floats], right: _Floats) -> _Floats:
    """Approximate ``x`` [D] in ``operator(x) = right``, a positive semi-definite system."""
    solution, residual, direction = np.zeros_like(right), right, right
    energy = start = float(right @ right)
    for _ in range(_STEPS):
        if energy <= 1e-12 * start:
            break
        image = operator(direction)
        rate = energy / float(direction @ image)
        solution, residual = solution + rate * direction, residual - rate * image
        previous, energy = energy, float(residual @ residual)
        direction = residual + (energy / previous) * direction
    return solution
