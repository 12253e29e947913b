"""Lines of a PDF page with where they stand, from the characters that PDFium finds."""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hiermem.documents.parts import NotReadableError

HYPHEN = "\ufffe"
"""End of a line whose last word goes on in the next one."""

CELL = "\t"
"""Text between two pieces of text with a wide gap between them, as cells of a table have."""

_GAP = 1.2  # heights of a line that a wide gap has
_PDFIUM_HYPHEN = 2  # the character that PDFium gives for a hyphen between letters at a line's end
_MOST = 5_000_000  # characters of a page
_SPACES = frozenset(map(ord, " \t\u00a0\u3000"))
_ENDS = frozenset(map(ord, "\r\n"))


@dataclass(frozen=True)
class Line:
    """A line of a page, in points, as if the page were upright.

    Attributes:
        text: what it says, in logical order; `HYPHEN` ends it where a word is hyphenated.
        left: its left end.
        right: its right end.
        base: height of its lower edge over the lower edge of the page; may be negative.
        height: of its characters.
        cells: left and right end of each piece between wide gaps.
    """

    text: str
    left: float = 0.0
    right: float = 0.0
    base: float = 0.0
    height: float = 10.0
    cells: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float


class PageText:
    """The characters of a page.

    Args:
        textpage: of pypdfium2; it is used only while this object is.

    Raises:
        NotReadableError: there are more than can be.
    """

    def __init__(self, textpage: Any) -> None:
        import pypdfium2.raw as pdfium

        self._pdfium, self._page = pdfium, textpage
        count = textpage.count_chars()
        if count > _MOST:
            raise NotReadableError(f"has a page with more than {_MOST} characters: give its text")
        self._codes: list[int] = [pdfium.FPDFText_GetUnicode(textpage, index) for index in range(count)]

    @cached_property
    def quarters(self) -> int:
        """Quarters of a turn, clockwise, by which most of a sample of the characters are turned."""
        sample = range(0, len(self._codes), max(len(self._codes) // 50, 1))
        turns = [
            round(self._pdfium.FPDFText_GetCharAngle(self._page, each) * 2 / math.pi) % 4 for each in sample
        ]
        return max(range(4), key=turns.count) if turns else 0

    def lines(self) -> Iterator[Line]:
        """The lines that are not blank, in the order of the page's content."""
        start = 0
        for index, code in enumerate([*self._codes, ord("\n")]):
            if code in _ENDS or code == _PDFIUM_HYPHEN:
                line = self._line(start, index, HYPHEN if code == _PDFIUM_HYPHEN else "")
                start = index + 1
                if line is not None:
                    yield line

    def _line(self, start: int, end: int, hyphen: str) -> Line | None:
        words = self._words(start, end)
        if not words:
            return None
        boxes = [(self._box(first), self._box(last)) for first, last in words]
        text = [self._string(*words[0])]
        height = max(box.top - box.bottom for box in boxes[0]) or 1.0
        leads_right = not any(map(_is_right_to_left, self._codes[start:end]))
        cells = [[boxes[0][0].left, boxes[0][1].right]]
        for word, (first, last), (_, before) in zip(words[1:], boxes[1:], boxes, strict=False):
            is_wide = leads_right and first.left - before.right > _GAP * height
            text += [CELL if is_wide else " ", self._string(*word)]
            if is_wide:
                cells.append([first.left, last.right])
            cells[-1][1] = last.right
        ends = [end for pair in boxes for box in pair for end in (box.left, box.right)]
        spans = tuple((left, right) for left, right in cells) if leads_right else ((min(ends), max(ends)),)
        return Line("".join(text) + hyphen, min(ends), max(ends), boxes[0][0].bottom, height, spans)

    def _words(self, start: int, end: int) -> list[tuple[int, int]]:
        """First and last character of every word."""
        words: list[tuple[int, int]] = []
        inside = False
        for index in range(start, end):
            if self._codes[index] in _SPACES:
                inside = False
            elif inside:
                words[-1] = (words[-1][0], index)
            else:
                words.append((index, index))
                inside = True
        return words

    def _string(self, first: int, last: int) -> str:
        units = "".join(map(chr, self._codes[first : last + 1]))
        # Characters beyond the first 65536 may come as two halves.
        return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")

    def _box(self, index: int) -> _Box:
        rect = self._pdfium.FS_RECTF()
        self._pdfium.FPDFText_GetLooseCharBox(self._page, index, rect)
        left, bottom, right, top = rect.left, rect.bottom, rect.right, rect.top
        if self.quarters == 1:
            return _Box(-top, left, -bottom, right)
        if self.quarters == 2:
            return _Box(-right, -top, -left, -bottom)
        if self.quarters == 3:
            return _Box(bottom, -right, top, -left)
        return _Box(left, bottom, right, top)


def _is_right_to_left(code: int) -> bool:
    return code >= 0x590 and code < 0x110000 and unicodedata.bidirectional(chr(code)) in ("R", "AL")
