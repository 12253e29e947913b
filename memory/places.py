"""Places of a document's characters: the page and the chapter that each stands in."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hiermem.memory.stored import MOST, Stored, in_range

LONGEST_CHAPTER = 200
"""Characters of the name of a chapter; the rest is cut."""


@dataclass(frozen=True)
class Place:
    """A place in a document.

    Attributes:
        page: its number, from 1; None: the document has no pages.
        chapter: the heading over it; empty: there is none.
        line: its number, from 1, in a document without pages; None: it was not counted.
    """

    page: int | None = None
    chapter: str = ""
    line: int | None = None


NOWHERE = Place()


class Places:
    """The places of a document's characters, each from one mark to the next.

    Args:
        marks: first character and place, in document order; of several at one character the last counts.
    """

    def __init__(self, marks: Iterable[tuple[int, Place]] = ()) -> None:
        self._starts: list[int] = []
        self._places: list[Place] = []
        for start, place in marks:
            self._mark(start, Place(place.page, place.chapter[:LONGEST_CHAPTER]))

    def _mark(self, start: int, place: Place) -> None:
        if start < 0 or (self._starts and start < self._starts[-1]):
            raise ValueError("the marks of places are not in the order of the document")
        if self._starts and start == self._starts[-1]:
            self._starts.pop()
            self._places.pop()
        if place != (self._places[-1] if self._places else NOWHERE):
            self._starts.append(start)
            self._places.append(place)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places) and self.marks() == other.marks()

    __hash__ = None  # type: ignore[assignment]

    def at(self, character: int) -> Place:
        """The place of a character."""
        found = bisect_right(self._starts, character)
        return self._places[found - 1] if found else NOWHERE

    def marks(self) -> list[tuple[int, Place]]:
        """First character and place, in document order."""
        return list(zip(self._starts, self._places, strict=True))

    @property
    def pages(self) -> int:
        """The number of the last page; 0: there are none."""
        return max((place.page or 0 for place in self._places), default=0)

    def then(self, others: "Places", offset: int) -> "Places":
        """These, and those of a text that follows from character ``offset`` on."""
        before = [mark for mark in self.marks() if mark[0] < offset]
        return Places([*before, (offset, NOWHERE), *((offset + at, place) for at, place in others.marks())])

    def tensors(self) -> dict[str, Tensor]:
        """All by name: ``starts [P]`` int64, ``pages [P]`` int64 (0: none), ``chapters`` uint8, ``sizes [P]``
        int64 of each chapter in it, in bytes of UTF-8."""
        names = [place.chapter.encode("utf-8", "surrogatepass") for place in self._places]
        return {
            "starts": torch.tensor(self._starts, dtype=torch.int64),
            "pages": torch.tensor([place.page or 0 for place in self._places], dtype=torch.int64),
            "chapters": torch.tensor(list(b"".join(names)), dtype=torch.uint8),
            "sizes": torch.tensor([len(name) for name in names], dtype=torch.int64),
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Places":
        """The inverse of `tensors`.

        Raises:
            ValueError: something is missing, left over or not as `tensors` leaves it.
        """
        stored = Stored(tensors, "places.")
        starts = in_range(stored.take("starts", torch.int64, None), 0, MOST, "a place").tolist()
        pages = in_range(stored.take("pages", torch.int64, len(starts)), 0, MOST, "a page").tolist()
        named = stored.take("sizes", torch.int64, len(starts))
        sizes = in_range(named, 0, 4 * LONGEST_CHAPTER, "the size of a chapter's name").tolist()
        names = bytes(stored.take("chapters", torch.uint8, sum(sizes)).tolist())
        stored.done()
        marks, at = [], 0
        for start, page, size in zip(starts, pages, sizes, strict=True):
            chapter = names[at : at + size].decode("utf-8", "surrogatepass")
            marks.append((start, Place(page or None, chapter)))
            at += size
        return cls(marks)
