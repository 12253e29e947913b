"""Tables of HTML as lines: a row of data is one line; a table that only lays out a page is none."""

from hiermem.documents.markup import Element

CELL = " | "
"""Text between the cells of a row."""

_LONGEST_CELL = 300
_BLOCKS = ("figure", "ul", "ol", "dl", "pre", "blockquote", "section", "h1", "h2", "h3", "h4", "h5", "h6")
_SPACED = ("br", "p", "div", "li")
_INNER = ("tbody", "thead", "tfoot", "tr", "td", "th", "caption", "colgroup", "col")


def flatten_tables(root: Element) -> None:
    """Make every table a block with its rows, or with the blocks of its cells, in the order of the document.

    Tables are not drawn in columns: one long cell would widen every row.
    """
    for table in reversed(list(root.iter("table"))):
        # Breaks alone divide the lines of a block; blocks within it would have blank lines between them.
        is_data = _holds_data(table)
        if is_data:
            _rows(table)
        for element in table.iter(*_INNER):
            element.tag = "span" if is_data else "div"
        table.tag = "figure"  # a block with a blank line before and after it


def _cells(row: Element) -> list[Element]:
    return [each for each in row if each.tag in ("td", "th")]


def _holds_data(table: Element) -> bool:
    if next(table.iter(*_BLOCKS), None) is not None:
        return False
    rows = [_cells(row) for row in table.iter("tr")]
    if max(map(len, rows), default=0) < 2:
        return False
    return all(sum(map(len, cell.itertext())) <= _LONGEST_CELL for row in rows for cell in row)


def _rows(table: Element) -> None:
    for element in table.iter(*_SPACED):
        element.tail = " " + (element.tail or "")
    for line in list(table.iter("caption", "tr")):
        cells = _cells(line) if line.tag == "tr" else [line]
        texts = [" ".join("".join(cell.itertext()).split()) for cell in cells]
        line.clear()
        if any(texts):
            line.text = CELL.join(texts)
            line.append(line.makeelement("br"))
