"""The order of a page's lines, and where its paragraphs end: pure functions of where lines stand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from hiermem.documents.pdf_lines import CELL, HYPHEN, Line

_FEWEST_ROWS = 5  # rows of two columns of prose that were written row by row
_LETTERS = 18  # characters of a line of prose in a column, on average
_FEWEST_DROPS = 4  # drops from line to line that tell the leading of a page
_LEADING = 1.25  # heights of a line, where a page does not tell it
_FAR = 1.3  # leadings from one paragraph to the next
_LARGER = 1.2  # times the height of text that a heading has
_INDENT = 0.8  # heights of a line

_CLOSING = ".!?:;。！？：…"
_AFTER_CLOSING = "\"'”’»)]」』）】"
_OPENING = "\"'“‘«([「『（"


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """The lines, those of two columns of prose that were written row by row column by column.

    PDFium gives lines in the order in which a page is drawn, which for columns is column by column nearly
    always. Rows of tables stay as they are: their cells are shorter than lines of prose.
    """
    ordered: list[Line] = []
    at = 0
    while at < len(lines):
        rows = lines[at : _rows_end(lines, at)]
        if _are_prose(rows):
            halves = [_halves(line) for line in rows]
            ordered += [left for left, _ in halves] + [right for _, right in halves]
        else:
            ordered += rows or [lines[at]]
        at += max(len(rows), 1)
    return ordered


def _rows_end(lines: Sequence[Line], start: int) -> int:
    """Where rows of two cells with one gap between them, which begin at ``start``, end."""
    end, left, right = start, float("-inf"), float("inf")
    while end < len(lines) and len(lines[end].cells) == 2:
        left, right = max(left, lines[end].cells[0][1]), min(right, lines[end].cells[1][0])
        if left >= right:
            break
        end += 1
    return end


def _are_prose(rows: Sequence[Line]) -> bool:
    """Whether rows of two cells are lines of two columns."""
    texts = [line.text.rstrip(HYPHEN).split(CELL) for line in rows]
    letters = [sum(len(text[side]) for text in texts) for side in (0, 1)]
    return len(rows) >= _FEWEST_ROWS and min(letters) >= _LETTERS * len(rows)


def _halves(line: Line) -> tuple[Line, Line]:
    texts = line.text.split(CELL)
    left, right = (
        replace(line, text=text, left=cell[0], right=cell[1], cells=(cell,))
        for text, cell in zip(texts, line.cells, strict=True)
    )
    return left, right


def paragraphs(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines of each paragraph: one ends at a wide gap, before a first line that is indented, before and
    after larger letters, and where the next line stands elsewhere, unless the sentence goes on there."""
    if not lines:
        return []
    leading = _leading(lines)
    found = [[lines[0]]]
    for index, (line, after) in enumerate(pairwise(lines), 1):
        beyond = lines[index + 1] if index + 1 < len(lines) else None
        if _is_break(line, after, beyond, leading):
            found.append([])
        found[-1].append(after)
    return found


def goes_on(line: Line, after: Line) -> bool:
    """Whether the sentence of a line goes on in one that stands elsewhere."""
    if line.text.endswith(HYPHEN):
        return True
    first = after.text.lstrip().lstrip(_OPENING)[:1]
    if is_closed(line.text) or not first.isalpha() or first.isupper():
        return False
    # Where a script has no capitals, a line that is not full ends a paragraph.
    return first.islower() or line.right - line.left >= after.right - after.left - after.height


def is_closed(text: str) -> bool:
    """Whether a sentence ends where a line ends."""
    return text.rstrip().rstrip(_AFTER_CLOSING)[-1:] in tuple(_CLOSING)


def _leading(lines: Sequence[Line]) -> float:
    """The usual drop from line to line; 0: the page does not tell."""
    drops = [line.base - after.base for line, after in pairwise(lines) if _is_below(line, after)]
    return median(drops) if len(drops) >= _FEWEST_DROPS else 0.0


def _is_below(line: Line, after: Line) -> bool:
    overlaps = line.left < after.right and after.left < line.right
    return overlaps and line.base - after.base > 0.3 * line.height


def _is_break(line: Line, after: Line, beyond: Line | None, leading: float) -> bool:
    if line.text.endswith(HYPHEN):
        return False
    if not _is_below(line, after):
        return not goes_on(line, after) and not _is_beside(line, after)
    larger, smaller = max(line.height, after.height), min(line.height, after.height)
    if larger > _LARGER * smaller:
        return True
    drop = line.base - after.base
    if drop > _FAR * (leading or _LEADING * larger):
        return True
    back = beyond is None or beyond.left < after.left - _INDENT * after.height
    return after.left > line.left + _INDENT * line.height and back and is_closed(line.text)


def _is_beside(line: Line, after: Line) -> bool:
    """Whether both stand at one height, as what PDFium takes apart in a line does."""
    return abs(line.base - after.base) <= 0.3 * line.height
