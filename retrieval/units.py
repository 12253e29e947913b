"""Units of a text that can stand alone as a passage: sentences of prose, rows of lists and tables.

Prose runs on over the ends of its lines, a list does not. Which of the two a paragraph is shows where its
lines end: those of prose are full, and many of the next ones begin with a small letter.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from unicodedata import east_asian_width

from hiermem.retrieval.words import MARKS, UNSPACED

LONGEST = 600
"""Characters of a unit; what is longer is cut between words."""

_SENTENCE = 300  # characters of a sentence; a longer one is cut between words
_ROW = 200  # characters of a row that stays whole however many sentences it holds, and of a header
_WIDTH = 40  # columns that lines of prose have at least
_ENOUGH = 4  # line ends that tell what a paragraph is; where there are fewer, those of the whole text tell
_SMALL = 0.25  # share of the lines of prose that begin with a small letter;
_FULL, _ENDED = 0.6, 0.2  # shares of them that are full, or within which sentences end: one of these holds
_NEARLY = 0.7  # share of its columns that a line of prose fills
_LONG_WORD = 20  # columns of a word at most: a row without spaces is no word

# Where a sentence may end, with the quotes, brackets and white space after it. A run of marks is looked at
# once, from its first one, so that the search takes linear time.
_END = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]]*+\s+|[。！？]++[」』）]*+\s*")
# Full stops of titles, initials and shortened words, which end none.
_SHORTENED = re.compile(
    r"\b(?:[A-HJ-Z]|Mrs?|Ms|Dr|Prof|St|Messrs|Mme|Mlle|Capt|Col|Gen|Lieut|Lt|Sergt|Sgt|Rev|Hon|Jr|Sr|Figs?"
    r"|vs|cf|al|approx|e\.g|i\.e|[ap]\.m)\.$"
)
_WITHIN = re.compile(r"[.!?][\"'”’)]{0,3} {1,2}[\"'“‘(]{0,3}[^\W\da-z]")  # a sentence ends within a line
_CLOSED = re.compile(r"[.!?。！？…][\"'”’)\]」』）]*$")  # how a sentence ends
_ASKS = ("?", ":", "？", "：")  # how a line ends that the next one answers
_HYPHENS = ("-", "\u2010", "\u00ad")
_OPENING = "\"'“‘(["
_CELL = re.compile(r"[\t|]|[,;](?=\S)")  # between the cells of a table
_TELLING = (re.compile(r"\d"), re.compile(r"[:=\t|]"))  # what rows have and the line over them lacks
_WORDS = re.compile(r"\w")
# Where a text may be cut: after white space, else after a mark that is not within a number, or between
# characters of a script without spaces.
_GAPS = (
    re.compile(r"\s(?=\S)"),
    re.compile(rf"[^\w\s'’{MARKS}](?=[^\W\d])|[{UNSPACED}](?=[{UNSPACED}])"),
)


@dataclass(frozen=True)
class Unit:
    """A sentence or a row.

    Attributes:
        start: its first character.
        end: the character after its last.
        header: span of the line that says what the rows of its list are, where there is one; of that line
            its own.
        paragraph: first character of the paragraph that it is a sentence of; of a row, that of the row.
    """

    start: int
    end: int
    header: tuple[int, int] | None = None
    paragraph: int = field(default=0, compare=False)

    @property
    def is_header(self) -> bool:
        """Whether it only says what the rows after it are."""
        return self.header == (self.start, self.end)


@dataclass(frozen=True)
class _Line:
    """A line that is not blank, with the blank ones after it."""

    start: int
    end: int
    text: str

    @property
    def columns(self) -> int:
        return _columns(self.text.strip())

    @property
    def first_word(self) -> int:
        """Columns of its first word."""
        return min(_columns(self.text.split(maxsplit=1)[0]), _LONG_WORD)

    @property
    def indent(self) -> int:
        return len(self.text) - len(self.text.lstrip(" \t"))

    @property
    def begins_small(self) -> bool:
        """Whether its first letter is small, or of a script that has no capitals."""
        first = self.text.lstrip().lstrip(_OPENING)[:1]
        return first.isalpha() and not first.isupper()

    @property
    def is_closed(self) -> bool:
        """Whether a sentence ends where it ends."""
        end = self.text.rstrip()[-12:]
        return _CLOSED.search(end) is not None and not _SHORTENED.search(end)

    @property
    def ends_sentence(self) -> bool:
        """Whether a sentence ends within it."""
        return _WITHIN.search(self.text) is not None


@dataclass(frozen=True)
class _Block:
    """Lines that run on into one another: a paragraph of prose, or a row of a list."""

    start: int
    end: int
    text: str

    @property
    def asks(self) -> bool:
        """Whether it is one line that the next one answers."""
        return self.text.endswith(_ASKS) and "\n" not in self.text

    @property
    def is_open(self) -> bool:
        """Whether no sentence ends where it ends, as with headings."""
        return not _CLOSED.search(self.text, max(len(self.text) - 8, 0))


@dataclass(frozen=True)
class _Piece:
    """A unit, which may go with the one after it.

    Attributes:
        asks: whether it goes with whatever comes next, for that answers it.
        leads: whether it goes with a sentence that comes next.
        row: whether it is a row.
    """

    unit: Unit
    asks: bool = False
    leads: bool = False
    row: bool = False

    def goes_with(self, following: "_Piece") -> bool:
        """Whether both are one unit."""
        if self.unit.is_header or following.unit.is_header or following.unit.end - self.unit.start > LONGEST:
            return False
        if following.asks:
            return False
        return self.asks or (self.leads and not following.leads and not following.row)


def split(text: str) -> list[Unit]:
    """The units of ``text`` in order, which cover it; none is longer than 600 characters.

    A heading has no full stop, so it goes with the sentence after it, or stands over the rows after it; a
    question on a line of its own goes with the line after it.
    """
    paragraphs = _paragraphs(text)
    width = _prose_width([pair for lines in paragraphs for pair in pairwise(lines)])
    pieces: list[_Piece] = []
    for lines in paragraphs:
        blocks = list(_blocks(text, lines, width))
        if len(blocks) > 1:
            pieces += _rows(text, blocks, _over(pieces, blocks))
        else:
            pieces += _sentences(text, blocks[0])
    return list(_joined(pieces))


def _columns(text: str) -> int:
    return len(text) if text.isascii() else sum(1 + (east_asian_width(c) in "WF") for c in text)


def _paragraphs(text: str) -> list[list[_Line]]:
    """Lines between blank ones, which belong to the line before them; the first ones to that after."""
    paragraphs: list[list[_Line]] = []
    start = end = 0
    ended = True
    for line in text.splitlines(keepends=True):
        end += len(line)
        blank = not line.strip()
        if blank and paragraphs:
            paragraphs[-1][-1] = replace(paragraphs[-1][-1], end=end)
        elif not blank:
            paragraphs += [[]] if ended else []
            paragraphs[-1].append(_Line(start, end, line))
        start, ended = end if paragraphs else 0, blank
    return paragraphs or [[_Line(0, end, text)]] * bool(text)


def _prose_width(pairs: Sequence[tuple[_Line, _Line]]) -> int:
    """Columns of lines of prose, of which there are pairs that follow one another; 0: these are rows."""
    columns = sorted(line.columns for line, _ in pairs)
    middle, long = (columns[len(columns) * quarter // 4] if columns else 0 for quarter in (2, 3))
    if middle < _WIDTH:
        return 0
    prose = [(line, after) for line, after in pairs if not _are_cells(line, after)]
    small = sum(after.begins_small for _, after in prose)
    full = sum(line.columns + 1 + after.first_word >= long for line, after in prose)
    ended = sum(line.ends_sentence for line, _ in prose)
    is_prose = small >= _SMALL * len(pairs) and (full >= _FULL * len(pairs) or ended >= _ENDED * len(pairs))
    return middle if is_prose else 0


def _are_cells(line: _Line, after: _Line) -> bool:
    """Whether two lines have the same number of cells, three or more."""
    return len(_CELL.findall(line.text)) == len(_CELL.findall(after.text)) > 1


def _blocks(text: str, lines: Sequence[_Line], width: int) -> Iterator[_Block]:
    """The lines of a paragraph, those put together that run on.

    Args:
        width: of the prose of the whole text.
    """
    pairs = list(pairwise(lines))
    tells = len(pairs) >= _ENOUGH
    width = _prose_width(pairs) if tells else width
    # Where one line has run on, a full one that ends with a sentence does too: no row of a list begins small.
    prose = any(after.begins_small for _, after in pairs)
    first = lines[0]
    for line, after in pairs:
        if not _runs_on(first, line, after, width, tells, prose):
            yield _Block(first.start, line.end, text[first.start : line.end].strip())
            first = after
    yield _Block(first.start, lines[-1].end, text[first.start : lines[-1].end].strip())


def _runs_on(first: _Line, line: _Line, after: _Line, width: int, tells: bool, prose: bool) -> bool:
    """Whether ``line`` goes on in the one after it.

    Args:
        first: where the row of ``line`` begins; what is indented under it belongs to it.
        tells: whether ``width`` is that of this very paragraph.
        prose: whether a line of this paragraph begins with a small letter.
    """
    if not _WORDS.search(after.text) or after.indent > first.indent:
        return True
    if line.text.rstrip().endswith(_HYPHENS) and after.begins_small:
        return True
    if tells or _are_cells(line, after):
        return tells and width > 0
    if width and line.columns >= _NEARLY * width and (prose or not line.is_closed):
        return True
    return line.columns >= _WIDTH and after.begins_small


def _over(pieces: list[_Piece], blocks: Sequence[_Block]) -> tuple[int, int] | None:
    """The line over the rows of a list: the first of them, or the heading before them, which is marked."""
    first, rest = blocks[0].text, [block.text for block in blocks[1:]]
    if (
        len(rest) > 1
        and blocks[0].end - blocks[0].start <= _ROW
        and (first.endswith(":") or _names_columns(first, rest))
    ):
        return blocks[0].start, blocks[0].end
    if pieces and pieces[-1].leads:
        unit = pieces[-1].unit
        pieces[-1] = _Piece(replace(unit, header=(unit.start, unit.end)))
        return pieces[-1].unit.header
    return None


def _names_columns(first: str, rest: Sequence[str]) -> bool:
    """Whether the first line of a table is no row: it lacks what nearly all rows have, or has names alone."""
    if first.endswith("?") or _TELLING[0].search(first):
        return False
    lacks = [mark for mark in _TELLING if not mark.search(first)]
    if any(sum(bool(mark.search(row)) for row in rest) > 0.9 * len(rest) for mark in lacks):
        return True
    cells = len(_CELL.findall(first))
    return cells > 0 and all(len(_CELL.findall(row)) == cells for row in rest)


def _rows(text: str, blocks: Iterable[_Block], header: tuple[int, int] | None) -> Iterator[_Piece]:
    """The rows of a list; long ones by sentences."""
    for block in blocks:
        size = block.end - block.start
        whole = size <= _ROW or (size <= LONGEST and not _END.search(block.text))
        bounds = [block.start, block.end] if whole else _sentence_bounds(text, block)
        for start, end in pairwise(bounds):
            unit = Unit(start, end, header, block.start)
            yield _Piece(unit, asks=block.asks and end == block.end, row=True)


def _sentences(text: str, block: _Block) -> Iterator[_Piece]:
    """The sentences of a paragraph, the last of which may be a heading or a question."""
    for start, end in pairwise(_sentence_bounds(text, block)):
        last = end == block.end
        yield _Piece(Unit(start, end, None, block.start), last and block.asks, last and block.is_open)


def _sentence_bounds(text: str, block: _Block) -> list[int]:
    """Where the sentences of a block begin, and where it ends."""
    bounds = [block.start]
    for match in _END.finditer(text, block.start, block.end):
        at, end = match.span()
        shortened = text[at] == "." and _SHORTENED.search(text, max(at - 8, block.start), at + 1)
        if end < block.end and not shortened and not text[end].islower():
            bounds += _cuts(text, bounds[-1], end)
    return bounds + _cuts(text, bounds[-1], block.end)


def _cuts(text: str, start: int, end: int) -> list[int]:
    """Where a sentence is cut for its length, and its end."""
    cuts = []
    while end - start > _SENTENCE:
        start = _gap(text, start, start + _SENTENCE)
        cuts.append(start)
    return [*cuts, end]


def _gap(text: str, start: int, end: int) -> int:
    """The last place before ``end`` where no word is cut; ``end`` where there is none."""
    for gap in _GAPS:
        places = [match.end() for match in gap.finditer(text, start + 1, end + 1)]
        if places and places[-1] <= end:
            return places[-1]
    return end


def _joined(pieces: Sequence[_Piece]) -> Iterator[Unit]:
    """The units, those put together that go together."""
    pending: _Piece | None = None
    for piece in pieces:
        if pending is not None and pending.goes_with(piece):
            unit = replace(piece.unit, start=pending.unit.start)
            piece = replace(piece, unit=unit)
        elif pending is not None:
            yield pending.unit
        pending = piece
    if pending is not None:
        yield pending.unit
