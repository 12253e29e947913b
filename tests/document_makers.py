"""Documents for tests, as bytes: plain and odd PDFs, EPUBs, Word files and pages of HTML."""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap

import matplotlib
from reportlab.lib.pagesizes import A4
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Table

PROSE = (
    "The harbour lay quiet in the morning light, and the boats came in one after the other with their nets "
    "full of herring. On the quay the women waited with baskets, and nobody spoke until the last sail was "
    "down. "
)

_WIDE, _HIGH = A4
_LEADING = 15


# ---- PDF


@cache
def _font() -> str:
    """A font with Hebrew, Arabic and ligatures."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    pdfmetrics.registerFont(TTFont("DejaVuSans", path))
    return "DejaVuSans"


@cache
def _cid_font(name: str) -> str:
    pdfmetrics.registerFont(UnicodeCIDFont(name))
    return name


def _pdf(*pages: Callable[[Canvas], None], encrypt: StandardEncryption | None = None) -> bytes:
    """A PDF whose pages are drawn by functions; the same for the same functions."""
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A4, invariant=True, encrypt=encrypt)
    for draw in pages:
        canvas.setFont("Helvetica", 11)
        draw(canvas)
        canvas.showPage()
    canvas.save()
    return file.getvalue()


def _column(lines: Sequence[str], left: float = 60, top: float = 760) -> Callable[[Canvas], None]:
    def draw(canvas: Canvas) -> None:
        for index, line in enumerate(lines):
            canvas.drawString(left, top - index * _LEADING, line)

    return draw


def _with_font(font: Callable[[], str], draw: Callable[[Canvas], None]) -> Callable[[Canvas], None]:
    def drawn(canvas: Canvas) -> None:
        canvas.setFont(font(), 11)
        draw(canvas)

    return drawn


def make_pdf(*pages: Sequence[str]) -> bytes:
    """A PDF of pages of lines; an empty page has none."""
    return _pdf(*map(_column, pages))


def make_book_pdf(chapters: list[tuple[str, str]]) -> bytes:
    """A book of chapters, of a title and prose each, over several pages with numbers, with an outline."""
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A4, invariant=True)
    number = 0
    for title, prose in chapters:
        paragraphs = [wrap(paragraph, 84) for paragraph in prose.split("\n\n")]
        lines = [line for paragraph in paragraphs for line in (*paragraph, "")]
        for page, start in enumerate(range(0, max(len(lines), 1), 40)):
            number += 1
            if not page:
                canvas.bookmarkPage(title)
                canvas.addOutlineEntry(title, title)
                canvas.setFont("Helvetica-Bold", 16)
                canvas.drawString(60, 790, title)
            canvas.setFont("Helvetica", 11)
            _column(lines[start : start + 40])(canvas)
            canvas.drawCentredString(_WIDE / 2, 40, str(number))
            canvas.showPage()
    canvas.save()
    return file.getvalue()


def two_columns_pdf(by_rows: bool = False) -> bytes:
    """Two columns of prose under a heading; the right one is in capitals.

    Args:
        by_rows: whether they are drawn line by line, not column by column.
    """
    lines = wrap(PROSE * 4, 40)

    def draw(canvas: Canvas) -> None:
        columns = [(60, line) for line in lines], [(320, line.upper()) for line in lines]
        rows = [list(enumerate(column)) for column in columns]
        placed = rows[0] + rows[1]
        if by_rows:
            placed.sort(key=lambda each: each[0])
        for index, (left, line) in placed:
            canvas.drawString(left, 720 - index * _LEADING, line)

    return _pdf(draw)


def table_pdf() -> bytes:
    """A table of towns, with a sentence before and after it."""
    rows = [
        ["Town", "People", "Founded"],
        ["Ulm", "126000", "850"],
        ["Bonn am Rhein", "331000", "11 BC"],
        ["Trier", "110000", "16 BC"],
    ]

    def draw(canvas: Canvas) -> None:
        canvas.drawString(60, 760, "These are the towns.")
        table = Table(rows, colWidths=[150, 100, 80])
        table.wrapOn(canvas, 400, 400)
        table.drawOn(canvas, 60, 650)
        canvas.drawString(60, 620, "There are no others.")

    return _pdf(draw)


def ligatures_pdf() -> bytes:
    """Words with the glyphs of ligatures, and soft hyphens."""
    lines = ["The oﬃce has a ﬂoor of ﬁr, and the eﬀect", "of soft\u00adware on a shuﬄe is small."]
    return _pdf(_with_font(_font, _column(lines)))


def hyphens_pdf() -> bytes:
    """Words cut at the ends of lines, and at the end of a page."""
    first = [
        "This is an exam-",
        "ple of a well-",
        "known word. It is well-known here. Pre-",
        "and post-war houses, Jean-",
        "Paul said, from 1990-",
        "1995 were built in a hur-",
    ]
    return make_pdf(first, ["ry by the state."])


def running_heads_pdf(pages: int = 6) -> bytes:
    """Prose with a running head and page numbers; the head of odd pages is another one than of even ones."""
    first, last = (
        ("Anna sailed", "Boats came", "Nets broke", "Ice lay"),
        ("at dawn.", "at noon.", "by night."),
    )

    def page(number: int) -> Callable[[Canvas], None]:
        def draw(canvas: Canvas) -> None:
            canvas.drawCentredString(_WIDE / 2, 40, f"Page {number} of {pages}")
            canvas.drawString(60, 800, "The Herring Fleet" if number % 2 else "A Novel of the Sea")
            lines = [f"{first[number % 4]} in the year {1800 + number}", "off the coast", last[number % 3]]
            _column(lines)(canvas)

        return draw

    return _pdf(*map(page, range(1, pages + 1)))


def right_to_left_pdf() -> bytes:
    """Hebrew and Arabic, drawn as typesetters do: the last letter first, each in the form of its place."""

    def draw(canvas: Canvas) -> None:
        canvas.setFont(_font(), 14)
        for index, line in enumerate(("הספר נמצא על השולחן", "בחדר הגדול ליד הים.")):
            canvas.drawRightString(_WIDE - 60, 760 - 20 * index, line[::-1])
        canvas.drawRightString(_WIDE - 60, 700, "ﻢﻟﺎﻌﻟﺎﺑ ﺎﺒﺣﺮﻣ")
        canvas.drawString(60, 660, f"The word {'שלום'[::-1]} means peace.")

    return _pdf(draw)


def cjk_pdf() -> bytes:
    """Chinese and Japanese in fonts that are not embedded."""

    def draw(canvas: Canvas) -> None:
        canvas.setFont(_cid_font("STSong-Light"), 14)
        canvas.drawString(60, 760, "北京是中华人民共和国的首都。它有很长的历史。")
        canvas.setFont(_cid_font("HeiseiMin-W3"), 14)
        canvas.drawString(60, 720, "東京は日本の首都です。人口が多い。")

    return _pdf(draw)


def rotated_pdf() -> bytes:
    """A page that is turned with its text, and one that shows its text turned."""
    lines = wrap(PROSE, 60)

    def upright(canvas: Canvas) -> None:
        canvas.translate(_WIDE, 0)
        canvas.rotate(90)
        canvas.setPageRotation(90)
        _column(lines, top=500)(canvas)

    def turned(canvas: Canvas) -> None:
        canvas.setPageRotation(90)
        _column(lines)(canvas)

    return _pdf(upright, turned)


def scanned_pdf(pages: int = 2) -> bytes:
    """Pages that hold nothing but a picture."""
    from PIL import Image

    picture = ImageReader(Image.new("L", (60, 80), 200))
    return _pdf(*[lambda canvas: canvas.drawImage(picture, 60, 60, 400, 600)] * pages)


def encrypted_pdf(password: str = "secret") -> bytes:
    """A PDF that opens with a password; where that is empty it opens without, and only its owner has one."""
    return _pdf(
        _column(["Nobody may read this."]), encrypt=StandardEncryption(password, "owner", strength=128)
    )


def endless_pdf() -> bytes:
    """A small PDF that takes PDFium hours: forms draw one another ten times, twelve deep."""

    def draw(canvas: Canvas) -> None:
        for depth in range(12):
            canvas.beginForm(f"form{depth}")
            for _ in range(10):
                canvas.drawString(60, 60, "deep") if not depth else canvas.doForm(f"form{depth - 1}")
            canvas.endForm()
        canvas.doForm("form11")

    return _pdf(draw)


# ---- archives


def make_zip(files: Mapping[str, str | bytes]) -> bytes:
    """An archive of files, with a fixed time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def xhtml(body: str, title: str = "") -> str:
    """A page of XHTML as it stands in EPUBs."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">'
        f"<head><title>{escape(title)}</title></head><body>{body}</body></html>"
    )


def epub_files(title: str, chapters: Sequence[tuple[str, str]]) -> dict[str, str | bytes]:
    """The files of an EPUB 3 with a table of contents; `make_epub` packs them."""
    names = [f"chapter{number}.xhtml" for number in range(1, len(chapters) + 1)]
    items = [
        f'<item id="c{n}" href="{name}" media-type="application/xhtml+xml"/>' for n, name in enumerate(names)
    ]
    links = [
        f'<li><a href="{name}">{escape(head)}</a></li>'
        for name, (head, _) in zip(names, chapters, strict=True)
    ]
    files: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<?xml version="1.0"?><container version="1.0" '
        'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
        'full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "OEBPS/book.opf": '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
        f'<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{escape(title)}</dc:title></metadata>'
        '<manifest><item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        f"{''.join(items)}</manifest><spine>"
        + "".join(f'<itemref idref="c{number}"/>' for number in range(len(names)))
        + "</spine></package>",
        "OEBPS/nav.xhtml": xhtml(f'<nav epub:type="toc"><ol>{"".join(links)}</ol></nav>'),
    }
    for name, (head, prose) in zip(names, chapters, strict=True):
        paragraphs = "".join(f"<p>{escape(each)}</p>" for each in prose.split("\n\n"))
        files[f"OEBPS/{name}"] = xhtml(f"<h1>{escape(head)}</h1>{paragraphs}", head)
    return files


def make_epub(title: str, chapters: Sequence[tuple[str, str]]) -> bytes:
    """An EPUB 3 of chapters, of a heading and prose each."""
    return make_zip(epub_files(title, chapters))


def older_epub() -> bytes:
    """An EPUB 2: an NCX whose entries point into one file, a cover that is not linear, entities, a spine in
    another order than the manifest."""
    files = epub_files("Old", [("unused", "unused"), ("unused", "unused")])
    del files["OEBPS/nav.xhtml"]
    files["OEBPS/book.opf"] = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="2.0"><manifest>'
        '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
        '<item id="b" href="chapter2.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="cover" href="cover.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="a" href="text%20one.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine toc="ncx"><itemref idref="cover" linear="no"/><itemref idref="a"/><itemref idref="b"/>'
        "</spine></package>"
    )
    files["OEBPS/toc.ncx"] = (
        '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>'
        '<navPoint><navLabel><text>I. The Sea</text></navLabel><content src="text%20one.xhtml"/></navPoint>'
        '<navPoint><navLabel><text>II. The Land</text></navLabel><content src="text%20one.xhtml#two"/>'
        "</navPoint></navMap></ncx>"
    )
    files["OEBPS/cover.xhtml"] = xhtml("<p>A cover.</p>")
    files["OEBPS/text one.xhtml"] = xhtml(
        '<h1>I</h1><p>Salt&nbsp;&mdash; and wind.<script src="x"/></p>'
        '<h1 id="two">II</h1><p>Fields &amp; woods.</p>'
    )
    files["OEBPS/chapter2.xhtml"] = xhtml("<p>An epilogue.</p>")
    return make_zip(files)


def encrypted_epub(*encrypted: str) -> bytes:
    """An EPUB that says that these of its files are encrypted."""
    files = epub_files("Sold", [("One", "Text.")])
    listed = "".join(
        f'<enc:EncryptedData><enc:CipherData><enc:CipherReference URI="{name}"/></enc:CipherData>'
        "</enc:EncryptedData>"
        for name in encrypted
    )
    files["META-INF/encryption.xml"] = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" '
        f'xmlns:enc="http://www.w3.org/2001/04/xmlenc#">{listed}</encryption>'
    )
    return make_zip(files)


_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def _paragraph(text: str, properties: str = "") -> str:
    style = f"<w:pPr>{properties}</w:pPr>" if properties else ""
    return f'<w:p>{style}<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def docx_files(body: str) -> dict[str, str | bytes]:
    """The files of a Word document with the given body; `make_docx` packs one."""
    style = '<w:style w:type="paragraph" w:styleId="{0}"><w:name w:val="{1}"/></w:style>'
    styles = style.format("H1", "heading 1") + style.format("H2", "heading 2") + style.format("T", "Title")
    return {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r1" '
        f'Type="{_OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>',
        "word/styles.xml": f'<w:styles xmlns:w="{_WORD}">{styles}</w:styles>',
        "word/numbering.xml": f'<w:numbering xmlns:w="{_WORD}"><w:abstractNum w:abstractNumId="0">'
        '<w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/></w:lvl></w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num></w:numbering>',
    }


def make_docx() -> bytes:
    """A Word document with a title, two headings, paragraphs, a list and a table."""
    item = '<w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>'
    rows = [("Town", "People"), ("Ulm", "126000")]
    cells = ["".join(f"<w:tc>{_paragraph(cell)}</w:tc>" for cell in row) for row in rows]
    body = (
        _paragraph("Report", '<w:pStyle w:val="T"/>')
        + _paragraph("Towns", '<w:pStyle w:val="H1"/>')
        + _paragraph("There are some towns.")
        + _paragraph("Ulm", item)
        + _paragraph("Trier", item)
        + _paragraph("Numbers", '<w:pStyle w:val="H2"/>')
        + f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"
        + _paragraph("That is all.")
    )
    return make_zip(docx_files(body))


# ---- HTML


HTML_PAGE = """<!DOCTYPE html>
<html><head><title>Harbours</title><meta charset="utf-8"><style>p { color: red }</style></head>
<body><script>var secret = 1;</script><p>Before any heading.</p>
<h1>Harbours of the <em>north</em></h1><p>They are &quot;cold&quot;
and dark.</p><div hidden>secret</div><p style="display: none">secret</p>
<ol start="4"><li>four</li><li>five<ul><li>inner</li></ul></li></ol>
<h2>Boats</h2><table><tr><th>Name</th><th>Length</th></tr><tr><td><p>Ida</p></td><td>9<br>m</td></tr></table>
<p>The end.</p></body></html>"""
"""A page with hidden things, headings, a numbered list and a table."""
