"""Search over all documents of a library: every segment is compared with the question, as over one memory.

Each document's keys stay in its own file, so that a document comes and goes at the cost of its own size.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiermem.errors import InputError
from hiermem.library.document_index import DocumentIndex, Scope
from hiermem.library.entries import DocumentEntry
from hiermem.memory.longterm import LongTermMemory
from hiermem.memory.records import Hit, SegmentRecord
from hiermem.retrieval.keys import Question


class LibraryIndex:
    """The documents of a library as they are searched.

    Args:
        queries: an empty long-term memory with the library's search keys; it makes keys of questions, and its
            statistics are those of all documents.
        folder: of the documents.
    """

    def __init__(self, queries: LongTermMemory, folder: Path) -> None:
        self.queries, self._folder = queries, folder
        self._documents: dict[str, tuple[int, DocumentIndex]] = {}

    def __len__(self) -> int:
        return len(self._documents)

    def show(self, entries: Iterable[DocumentEntry]) -> None:
        """Take the documents that are there now: those that came are opened, those that went are dropped.

        Raises:
            MemoryCorruptError: the index of a document is damaged.
            FileNotFoundError: a document has gone meanwhile; nothing has changed then.
        """
        wanted = {entry.name: entry for entry in entries}
        kept = {
            name: pair
            for name, pair in self._documents.items()
            if name in wanted and wanted[name].id == pair[0]
        }
        came = {name: (entry.id, self._opened(entry)) for name, entry in wanted.items() if name not in kept}
        gone = [pair[1].statistics for name, pair in self._documents.items() if name not in kept]
        queries = self.queries.copy()  # so that nothing is counted twice where this fails
        queries.count_statistics([index.statistics for _, index in came.values()])
        queries.count_statistics(gone, removed=True)
        self.queries = queries
        self._documents = {name: kept.get(name) or came[name] for name in wanted}

    def _opened(self, entry: DocumentEntry) -> DocumentIndex:
        units = self.queries.units
        widths = (self.queries.width, 0 if units is None else units.width)
        return DocumentIndex(entry.name, self._folder / entry.folder, *widths)

    def document(self, name: str) -> DocumentIndex:
        """The index of a document that is there.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self._documents:
            raise InputError(f"There is no document {name!r} in the library: hiermem list shows all.")
        return self._documents[name][1]

    def recall(
        self,
        question: Question,
        k: int,
        scope: Scope,
        eligible: Callable[[SegmentRecord], bool] = lambda _: True,
    ) -> list[Hit]:
        """The best ``k`` segments of all documents in scope that are ``eligible``, best first.

        Raises:
            NonFiniteError: the question's key holds NaN or infinity.
        """
        searched = [index for _, index in self._documents.values() if scope.includes(index.name)]
        if not searched or k < 1:
            return []
        query, units = self.queries.query_key(question), self.queries.units
        of_units = None if units is None else units.query(question)
        limits = [index.limit(scope) for index in searched]
        scores = [index.scores(query, of_units, limit) for index, limit in zip(searched, limits, strict=True)]
        first, hits = np.cumsum([0, *map(len, scores)]), list[Hit]()
        together = np.concatenate(scores)
        for row in _descending(together):
            at = int(np.searchsorted(first, row, side="right")) - 1
            hit = searched[at].hit(row - int(first[at]), float(together[row]), of_units, limits[at])
            if eligible(hit.record):
                hits.append(hit)
            if len(hits) == k:
                break
        return hits


def _descending(scores: NDArray[np.float32]) -> Iterable[int]:
    """Places of finite scores, best first; of equal ones the first comes first."""
    order = np.argsort(-scores, kind="stable")
    return order[: int(np.isfinite(scores).sum())].tolist()
