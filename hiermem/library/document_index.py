"""Index of one document of a library: texts and search keys of its segments, mapped from one file.

The file is made of the document's memory once, and never changes. The last segment, which may be shorter
than others, has its keys here too, and is counted in the statistics.

Dimension names: N segments, U units, D width of a segment's key, W width of a unit's.
"""

import hashlib
import os
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiermem.errors import MemoryCorruptError
from hiermem.memory.contents import UNITS
from hiermem.memory.longterm import LongTermMemory
from hiermem.memory.places import Place, Places
from hiermem.memory.records import Hit, RecordTexts, SegmentRecord, UnitHit
from hiermem.memory.state import MemoryState
from hiermem.memory.stored import MOST, Stored, in_range
from hiermem.memory.unit_index import UnitQuery
from hiermem.retrieval.disk import sha256_of
from hiermem.retrieval.regular_files import NotPlainError, plain_file
from hiermem.retrieval.tensors import mapped_views

INDEX = "index.safetensors"

_NO_IDS = torch.zeros(0, dtype=torch.int32)


def index_tensors(memory: MemoryState) -> dict[str, Tensor]:
    """The tensors of a document's index, by name."""
    longterm = _complete(memory.longterm)
    files = longterm.tensors()
    tensors = {f"records.{name}": files["records"][name] for name in ("spans", "text")}
    tensors |= {f"keys.{name}": tensor for name, tensor in files["keys"].items()}
    tensors |= {f"units.{name}": tensor for name, tensor in files.get(UNITS, {}).items()}
    return tensors | {f"places.{name}": tensor for name, tensor in memory.places.tensors().items()}


def _complete(longterm: LongTermMemory) -> LongTermMemory:
    """The same memory with its partial segment among the complete ones."""
    if longterm.partial is None:
        return longterm
    whole = longterm.copy()
    whole.write([copy(longterm.partial)])
    return whole


def write_index(folder: Path, memory: MemoryState) -> str:
    """Write the index of a memory into a folder, and sync it; its hash."""
    data = safetensors.torch.save({name: t.contiguous() for name, t in index_tensors(memory).items()})
    write_synced(folder / INDEX, data)
    return hashlib.sha256(data).hexdigest()


def index_digest(folder: Path) -> str:
    """Hash of the index in a folder."""
    return sha256_of(folder / INDEX)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that outlasts a power cut."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Scope:
    """The part of the documents that a question is about.

    Attributes:
        documents: names of those; empty: all.
        before: only pages before that one; None: all of each document.
    """

    documents: frozenset[str] = frozenset()
    before: int | None = None

    def includes(self, name: str) -> bool:
        """Whether a document is part of it."""
        return not self.documents or name in self.documents


class DocumentIndex:
    """Index of one document, as it lies on the disk.

    Args:
        name: of the document.
        folder: with its file.
        width: of a segment's key.
        unit_width: of a unit's; 0: there are no search keys of units.

    Raises:
        MemoryCorruptError: the file is missing, or does not make sense.
        OSError: it cannot be opened.

    Attributes:
        statistics: of the search keys, as `LongTermMemory.tensors` has them.
    """

    def __init__(self, name: str, folder: Path, width: int, unit_width: int) -> None:
        self.name = name
        try:
            with plain_file(folder / INDEX) as file, file.stream() as stream:
                tensors = mapped_views(folder / INDEX, stream, file.size)
            self._take(tensors, width, unit_width)
        except (NotPlainError, ValueError) as error:
            raise _damaged(name, error) from error

    def _take(self, tensors: Mapping[str, Tensor], width: int, unit_width: int) -> None:
        stored = Stored(tensors)
        records, keys = stored.within("records"), stored.within("keys")
        spans = in_range(records.take("spans", torch.int64, None, 5), 0, MOST, "a span")
        self._text = records.take("text", torch.uint8, None)
        self._keys = _keys(keys, len(spans), width)
        self.statistics = keys.all()
        self._spans = spans.numpy()
        self._bytes = np.cumsum([0, *self._spans[:, 4]])
        if self._bytes[-1] != len(self._text):
            raise ValueError("the texts are of another length")
        units = stored.within("units")
        self._units = _Units.take(units, len(spans), unit_width) if unit_width else None
        self.places = Places.of(stored.within("places").all())
        for rest in (records, units, stored):
            rest.done()

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def text(self) -> str:
        """All of the document."""
        return self._decoded(self._text)

    def _decoded(self, utf8: Tensor) -> str:
        try:
            return bytes(utf8.numpy()).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise _damaged(self.name, error) from error

    def record(self, segment: int, limit: int | None = None) -> SegmentRecord:
        """A segment, without its tokens.

        Args:
            limit: character that its text ends before; None: at its own end.
        """
        first, _, start, end, _ = self._spans[segment].tolist()
        text = self._decoded(self._text[self._bytes[segment] : self._bytes[segment + 1]])
        if limit is not None and limit < end:
            text, end = text[: max(limit - start, 0)], max(limit, start)
        return SegmentRecord(first, _NO_IDS, start, end, text)

    def segment_text(self, segment: int, limit: int | None = None) -> str:
        """The text of a segment; empty where there is none of that number."""
        return self.record(segment, limit).text if 0 <= segment < len(self) else ""

    def place(self, character: int) -> Place:
        """The page and chapter of a character; its line where there are no pages."""
        place = self.places.at(character)
        if place.page:
            return place
        segment = max(int(np.searchsorted(self._spans[:, 2], character, side="right")) - 1, 0)
        ends = int((self._text[: self._bytes[segment]] == ord("\n")).sum())
        record = self.record(segment)
        return replace(place, line=ends + record.text.count("\n", 0, character - record.start) + 1)

    def limit(self, scope: Scope) -> int | None:
        """The character that a scope's part of this document ends before; None: at the end.

        A document without pages has no part before any page.
        """
        if scope.before is None:
            return None
        if not self.places.pages:
            return 0
        later = (start for start, place in self.places.marks() if (place.page or 0) >= scope.before)
        return next(later, None)

    def scores(self, query: Tensor, of_units: UnitQuery | None, limit: int | None) -> NDArray[np.float32]:
        """How well each segment fits a question, ``[N]``: by its own key and the best of its units together;
        -inf for those that begin behind the limit, or whose keys are no numbers.

        Args:
            query: the question's key, ``[D]`` float32.
        """
        scores = (self._keys @ query).numpy()
        if self._units is not None and of_units is not None:
            scores = scores + self._units.best(of_units, limit)
        if limit is not None:
            scores = np.where(self._spans[:, 2] < limit, scores, -np.inf)
        return np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)

    def hit(self, segment: int, score: float, of_units: UnitQuery | None, limit: int | None) -> Hit:
        """A segment that was found with a score, with its units."""
        record, units = self.record(segment, limit), []
        if self._units is not None and of_units is not None:
            found = self._units.hits(segment, of_units, limit)
            own = score - max((unit.score for unit in found), default=0.0)
            units = [UnitHit(unit.start, unit.end, own + unit.score, unit.own) for unit in found]
        return Hit(segment, score, record, units, self.name)

    @property
    def texts(self) -> RecordTexts:
        """Texts of all segments."""
        return RecordTexts([self.record(segment) for segment in range(len(self))])


def _damaged(name: str, why: Exception) -> MemoryCorruptError:
    return MemoryCorruptError(
        f"The index of the document {name!r} is damaged ({why}): remove the document and add it again."
    )


def _keys(stored: Stored, segments: int, width: int) -> Tensor:
    keys = stored.take_unread("keys", torch.float32, segments, None)
    if segments and keys.shape[1] != width:
        raise ValueError("the search keys are of another width")
    return keys if segments else torch.zeros(0, width)


class _Units:
    """Units of all segments.

    Attributes:
        keys: ``[U, W]`` float32.
        spans: first characters, and those after the last, ``[U, 2]`` int64.
        first: row of the first unit of each segment, and the row after the last, ``[N + 1]``.
    """

    def __init__(self, keys: Tensor, spans: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self.keys, self.spans, self.first = keys, spans, np.cumsum([0, *counts])

    @classmethod
    def take(cls, stored: Stored, segments: int, width: int) -> "_Units":
        counts = in_range(stored.take("counts", torch.int64, segments), 0, MOST, "a number of units")
        total = int(counts.sum())
        keys = stored.take_unread("keys", torch.float32, total, None)
        spans = in_range(stored.take("spans", torch.int64, total, 2), 0, MOST, "a span of a unit")
        if total and keys.shape[1] != width:
            raise ValueError("the search keys of units are of another width")
        return cls(keys if total else torch.zeros(0, width), spans.numpy(), counts.numpy())

    def best(self, query: UnitQuery, limit: int | None) -> NDArray[np.float32]:
        """How well the best unit of each segment fits, ``[N]``; 0 where it has none."""
        best = np.zeros(len(self.first) - 1, np.float32)
        held = np.flatnonzero(np.diff(self.first))
        if len(held):
            scores = (self.keys @ query.key).numpy()
            if limit is not None:
                scores = np.where(self.spans[:, 1] <= limit, scores, -np.inf)
            found = np.maximum.reduceat(scores, self.first[held])
            best[held] = np.where(np.isfinite(found), found, 0)
        return best

    def hits(self, segment: int, query: UnitQuery, limit: int | None) -> list[UnitHit]:
        """How well each unit of a segment fits by itself."""
        rows = slice(self.first[segment], self.first[segment + 1])
        scores, weight = (self.keys[rows] @ query.key).tolist(), query.weight or 1.0
        return [
            UnitHit(start, end, score, score / weight)
            for (start, end), score in zip(self.spans[rows].tolist(), scores, strict=True)
            if limit is None or end <= limit
        ]
