"""Documents of every kind as text, with the page and the chapter of every character."""

import hashlib
import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import document_makers as make
import pytest

from hiermem.bundled import BUNDLED_DOCUMENTS
from hiermem.documents import (
    KINDS,
    Document,
    decoded_text,
    document_of_bytes,
    document_of_text,
    is_readable,
    open_document,
    open_named,
    pdf,
    pdf_pages,
    read_document,
)
from hiermem.documents.pdf_cleaning import (
    Vocabulary,
    dehyphenated,
    page_texts,
    spelled_out,
    without_running_heads,
)
from hiermem.documents.pdf_layout import goes_on, in_reading_order, paragraphs
from hiermem.documents.pdf_lines import CELL, HYPHEN, Line
from hiermem.errors import InputError

CHAPTERS = [("The Sea", "Salt and wind.\n\nMore wind."), ("The Land", "Fields & woods.")]


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PDFium in this process, which is fast, but for tests of the one of its own."""
    if "isolated" not in request.node.name and "missing" not in request.node.name:
        monkeypatch.setattr(pdf, "isolated_pages", pdf_pages.pages_of)


def read(data: bytes, name: str = "document") -> Document:
    return document_of_bytes(name, data)


def places(document: Document) -> list[tuple[str, int | None, str]]:
    """First line, page and chapter of each piece."""
    marks = document.places.marks()
    return [(document.text[at:].partition("\n")[0], place.page, place.chapter) for at, place in marks]


# ---- which kind


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (make.make_pdf(["One line."]), "pdf"),
        (make.make_epub("Book", CHAPTERS), "epub"),
        (make.make_docx(), "docx"),
        (make.HTML_PAGE.encode(), "html"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a --><html xmlns="x"><body>a</body></html>', "html"),
        ("\ufeff<HTML><p>a</p>".encode("utf-16-le"), "html"),
        (b"Just <html> in a text.", "text"),
        (b"Just %PDF-1.4 in a text.", "text"),
    ],
)
def test_the_content_tells_the_kind_whatever_the_name(data: bytes, kind: str) -> None:
    for name in ("document", "a.txt", "a.bin"):
        assert read(data, name).kind == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.md", "markdown"), ("a.HTM", "html"), ("a", "text"), ("a.csv", "text"), ("md", "text")],
)
def test_the_name_tells_the_kind_of_what_has_no_mark(name: str, kind: str) -> None:
    assert read(b"A line.", name).kind == kind


def test_endings_say_what_is_read_in_folders() -> None:
    assert set(KINDS) == {"text", "markdown", "html", "pdf", "epub", "docx"}
    for endings in KINDS.values():
        assert all(is_readable(f"folder/name{ending}") for ending in endings)
    assert is_readable(Path("A.PDF"))
    assert not any(map(is_readable, ("pdf", "a.doc", "a.png", "a", ".pdf")))


# ---- plain text and Markdown


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_stays_as_it_stands(name: str, charset: str) -> None:
    text = "# Café\r\n\ttext\x0c \n\n\n```\n# code\n```\n"
    data = text.encode(charset)
    document = read(data, name)
    assert document.text == text == decoded_text(data, name)
    assert document.sha256 == hashlib.sha256(data).hexdigest()


def test_headings_of_markdown_are_chapters() -> None:
    text = (
        "intro\n# One #\na\n~~~~\n# code\n```\n~~~\n# code\n~~~~\n  ### Two *b*\n#no\n    # code\n#### deep\n"
    )
    assert places(document_of_text("a.md", text)) == [
        ("# One #", None, "One"),
        ("  ### Two *b*", None, "Two *b*"),
    ]
    assert not document_of_text("a.txt", text).places
    assert document_of_text("a.md", text).text == text


@pytest.mark.parametrize("text", ["", " \n", "a\0b"])
def test_a_text_that_is_none_is_refused(text: str) -> None:
    for document in (lambda: document_of_text("a", text), lambda: read(text.encode(), "a.txt")):
        with pytest.raises(InputError, match="'a"):
            document()


# ---- PDF


def test_a_book_has_pages_and_chapters() -> None:
    long = " ".join(f"Sentence {number} of the book goes on for a while." for number in range(200))
    document = read(
        make.make_book_pdf([("The Sea", long), ("The Land", "Short.\n\nAnother paragraph."), ("End", "x")])
    )
    assert document.places.pages == 5
    assert [(page, chapter) for _, page, chapter in places(document)] == [
        (1, "The Sea"), (2, "The Sea"), (3, "The Sea"), (4, "The Land"), (5, "End")
    ]  # fmt: skip
    assert document.text.split()[2:-5] == f"{long} The Land".split()
    assert document.text.endswith("\n\nThe Land\n\nShort.\n\nAnother paragraph.\n\nEnd\n\nx\n")
    for number in range(200):
        at = " ".join(document.text.split("\n")).index(f"Sentence {number} ")
        assert document.places.at(at).page == 1 + sum(start <= at for start, _ in document.places.marks()[1:])


def test_columns_are_read_one_after_the_other() -> None:
    for by_rows in (False, True):
        text = read(make.two_columns_pdf(by_rows)).text
        left, right = text.strip().split("\n\n")
        assert " ".join(left.split()) == (make.PROSE * 4).strip()
        assert right == left.upper()


def test_a_row_of_a_table_is_a_line() -> None:
    rows = "Town\tPeople\tFounded\nUlm\t126000\t850\nBonn am Rhein\t331000\t11 BC\nTrier\t110000\t16 BC"
    assert read(make.table_pdf()).text == f"These are the towns.\n\n{rows}\n\nThere are no others.\n"


def test_ligatures_and_soft_hyphens_are_letters() -> None:
    text = read(make.ligatures_pdf()).text
    assert text == "The office has a floor of fir, and the effect\nof software on a shuffle is small.\n"


def test_words_that_lines_cut_are_whole() -> None:
    document = read(make.hyphens_pdf())
    assert document.text.split("\n") == [
        "This is an example",
        "of a well-known",
        "word. It is well-known here. Pre-",
        "and post-war houses, Jean-Paul",
        "said, from 1990-",
        "1995 were built in a hurry",
        "by the state.",
        "",
    ]
    assert places(document)[1] == ("by the state.", 2, "")


def test_running_heads_and_page_numbers_are_left_out() -> None:
    document = read(make.running_heads_pdf())
    assert [line for line, _, _ in places(document)] == [
        f"{['Anna sailed', 'Boats came', 'Nets broke', 'Ice lay'][number % 4]} in the year {1800 + number}"
        for number in range(1, 7)
    ]
    assert document.text.count("off the coast") == 6
    assert "Page" not in document.text and "Herring" not in document.text and "Novel" not in document.text


def test_pages_without_text_keep_their_numbers() -> None:
    document = read(make.make_pdf([], ["a line"], [], ["Another."]))
    assert places(document) == [("a line", 2, ""), ("Another.", 4, "")]
    assert document.text == "a line\n\nAnother.\n"


def test_right_to_left_and_chinese_are_in_logical_order() -> None:
    text = read(make.right_to_left_pdf()).text
    assert text.startswith("הספר נמצא על השולחן\nבחדר הגדול ליד הים.\n\nمرحبا بالعالم\n\n")
    assert text.endswith("The word שלום means peace.\n")
    assert read(make.cjk_pdf()).text.split() == [
        "北京是中华人民共和国的首都。它有很长的历史。",
        "東京は日本の首都です。人口が多い。",
    ]


def test_turned_pages_are_read_in_order() -> None:
    upright, turned = read(make.rotated_pdf()).text.strip().split("\n\n")
    assert " ".join(upright.split()) == make.PROSE.strip() and turned == upright


def test_a_pdf_that_anyone_may_open_is_read() -> None:
    assert read(make.encrypted_pdf("")).text == "Nobody may read this.\n"


def test_an_isolated_process_gives_the_same() -> None:
    data = make.make_book_pdf([("One", make.PROSE), ("Two", make.PROSE)])
    assert pdf_pages.isolated_pages(data) == pdf_pages.pages_of(data)
    with pytest.raises(InputError, match="needs a password"):
        read(make.encrypted_pdf())


def test_a_pdf_that_never_ends_is_refused_by_an_isolated_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_pages, "SECONDS", 4)
    with pytest.raises(InputError, match="takes more than 4 seconds"):
        read(make.endless_pdf())


def test_a_failing_isolated_process_is_a_damaged_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_pages, "_COMMAND", "import os; os.abort()")
    with pytest.raises(InputError, match="PDFium fails on it"):
        read(make.make_pdf(["a"]))


# ---- PDF lines


def column(*texts: str, left: float = 0, top: float = 700, drop: float = 12) -> list[Line]:
    lines = []
    for index, text in enumerate(texts):
        lines.append(
            Line(text, left, left + 5 * len(text), top - drop * index, cells=((left, left + 5 * len(text)),))
        )
    return lines


def test_ligatures_are_spelled_out() -> None:
    assert spelled_out("oﬃce ﬂoor eﬀect ﬁr ﬆ ﻡﺮﺣﺐﺍ Straße ½") == "office floor effect fir st مرحبا Straße ½"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f"an exam{HYPHEN}", "ple of it"], ["an example", "of it"]),
        ([f"a re{HYPHEN}", f"mark{HYPHEN}", "able day"], ["a remarkable", "day"]),
        ([f"a well{HYPHEN}", "known well-known"], ["a well-known", "well-known"]),
        ([f"a well{HYPHEN}", "known wellknown well-known"], ["a wellknown", "wellknown well-known"]),
        ([f"Jean{HYPHEN}", "Paul"], ["Jean-Paul"]),
        ([f"Vor{HYPHEN}", "und Nachteile"], ["Vor-", "und Nachteile"]),
        ([f"an exam{HYPHEN}", "ple."], ["an example."]),
        ([f"an end{HYPHEN}"], ["an end-"]),
    ],
)
def test_halves_of_words_are_joined(lines: list[str], expected: list[str]) -> None:
    assert dehyphenated(column(*lines), Vocabulary(column(*lines))) == expected


def test_heads_are_left_out_on_three_pages_and_half_of_them_only() -> None:
    def pages(heads: list[str]) -> list[list[Line]]:
        words = ["north", "south", "east", "west", "up", "down", "in", "out"]
        return [
            column(head, *(f"{word} {each}" for each in "abcdefg"))
            for head, word in zip(heads, words, strict=False)
        ]

    def left(heads: list[str]) -> list[str]:
        return [lines[0].text for lines in without_running_heads(pages(heads))]

    assert left(["Head 1", "Head 2"]) == ["Head 1", "Head 2"]
    assert left(["Head 1", "Head 2", "Head 30"]) == ["north a", "south a", "east a"]
    assert left(["iv", "x", "xii"]) == ["north a", "south a", "east a"]
    assert left(["One"] * 3 + ["a", "b", "c", "d", "e"])[:3] == ["One"] * 3
    assert left(["One", "Two"] * 3) == [lines[1].text for lines in pages(["One"] * 6)]


def test_paragraphs_end_where_the_page_shows_it() -> None:
    prose = [f"line {number} of some prose" for number in range(6)]
    lines = [
        *column(*prose),
        *column("After a gap", "it goes on.", top=610),
        *column("Indented", left=15, top=586),
    ]
    found = [
        [line.text for line in paragraph] for paragraph in paragraphs([*lines, *column("again.", top=574)])
    ]
    assert found == [prose, ["After a gap", "it goes on."], ["Indented", "again."]]
    assert paragraphs([]) == []
    hanging = [*column("* an item that"), *column("goes on", left=15, top=688), *column("* another", top=676)]
    assert len(paragraphs(hanging)) == 1


def test_a_sentence_goes_on_over_a_page() -> None:
    def text(first: str, second: str) -> str:
        return "".join(page_texts([column(first), [], column(second)]))

    assert text("the boats came", "in one by one.") == "the boats came\nin one by one.\n"
    assert text("the boats came.", "in one by one.") == "the boats came.\n\nin one by one.\n"
    assert text("the boats came", "In one by one.") == "the boats came\n\nIn one by one.\n"
    assert text("the boats in a hur-", "ry.") == "the boats in a hurry.\n"
    assert goes_on(*column("船は港に入", "った。")) and not goes_on(*column("船", "静かな朝の光の中で港は"))


def test_rows_of_short_cells_are_no_columns() -> None:
    def rows(left: str, right: str) -> list[Line]:
        ends = ((0.0, 100.0), (150.0, 250.0))
        return [Line(f"{left}{CELL}{right}", 0, 250, 700 - 12 * row, cells=ends) for row in range(6)]

    assert in_reading_order(rows("Ulm", "126000")) == rows("Ulm", "126000")
    prose = in_reading_order(rows("the boats came in one", "by one with their nets"))
    assert [line.text for line in prose] == ["the boats came in one"] * 6 + ["by one with their nets"] * 6


# ---- HTML, EPUB, DOCX


def test_html_gives_what_is_shown() -> None:
    document = read(make.HTML_PAGE.encode())
    assert document.text == (
        "Before any heading.\n\nHarbours of the north\n\n"
        'They are "cold" and dark.\n\n 4. four\n 5. five\n      + inner\n\n'
        "Boats\n\nName | Length\nIda | 9 m\n\nThe end.\n"
    )
    assert places(document) == [
        ("Harbours of the north", None, "Harbours of the north"),
        ("Boats", None, "Boats"),
    ]


@pytest.mark.parametrize(
    "data",
    [
        "<p>café".encode(),
        "<p>café".encode("cp1252"),
        "<meta charset=iso-8859-1><p>café".encode("cp1252"),
        "<meta charset=utf-16><p>café".encode(),
        "<meta charset=unicode_escape><p>café".encode(),
        '<meta http-equiv="Content-Type" content="text/html; charset=macintosh"><p>café'.encode("mac-roman"),
        "\ufeff<p>café".encode("utf-16-be"),
        '<?xml version="1.0" encoding="iso-8859-15"?><html xmlns="x"><p>café</p></html>'.encode(
            "iso-8859-15"
        ),
        b"<p>caf&eacute;",
        b"<p>caf&#233;",
        b'<html xmlns="http://www.w3.org/1999/xhtml"><title/><p>caf&eacute;<script src="a"/></p></html>',
    ],
)
def test_html_is_decoded_as_it_says_or_as_it_can_be(data: bytes) -> None:
    assert read(data, "a.html").text == "café\n"


def test_entities_are_read_once() -> None:
    page = b"<h1>&amp;amp;</h1><p>Write &amp;lt; for &lt;, and &amp;shy;.<pre>&amp;gt;</pre>"
    document = read(page, "a.html")
    assert document.text == "&amp;\n\nWrite &lt; for <, and &shy;.\n\n&gt;\n"
    assert document.places.at(0).chapter == "&amp;"


@pytest.mark.parametrize("unit", ["<!-- -->", "\xa0"])
def test_long_pages_take_time_in_proportion(unit: str) -> None:
    """Each takes hours where the time grows with the square of the length, or faster."""
    assert "end" in read(f"{unit * 200_000}<p>end".encode(), "a.html").text


def test_no_entity_is_expanded() -> None:
    page = (
        '<?xml version="1.0"?><!DOCTYPE html [<!ENTITY a "boom"><!ENTITY b SYSTEM "file:///etc/passwd">]>'
        '<html xmlns="http://www.w3.org/1999/xhtml"><body><p>x &a; &b;</p></body></html>'
    )
    assert read(page.encode(), "a.xhtml").text == "x &a; &b;\n"


def test_a_table_that_lays_out_a_page_is_read_block_by_block() -> None:
    inner = "<table><tr><td>a<td>b</table>"
    page = f"<table><tr><td><h1>Left</h1>{inner}<td><p>{make.PROSE * 3}</p></table>"
    assert read(page.encode(), "a.html").text == f"Left\n\na | b\n\n{(make.PROSE * 3).strip()}\n"


def test_a_table_takes_no_more_than_it_says() -> None:
    cell = "x" * 290
    page = f"<table><tr><td>{cell}<td>b</tr>{'<tr><td>a<td>b' * 2000}</table>"
    assert len(read(page.encode(), "a.html").text) < 20_000


def test_an_epub_is_read_in_the_order_of_its_spine() -> None:
    document = read(make.make_epub("Book", CHAPTERS))
    assert document.text == "The Sea\n\nSalt and wind.\n\nMore wind.\n\nThe Land\n\nFields & woods.\n"
    assert places(document) == [("The Sea", None, "The Sea"), ("The Land", None, "The Land")]


def test_the_contents_of_an_older_epub_name_its_chapters() -> None:
    document = read(make.older_epub())
    assert document.text == "I\n\nSalt — and wind.\n\nII\n\nFields & woods.\n\nAn epilogue.\n"
    assert places(document) == [("I", None, "I. The Sea"), ("II", None, "II. The Land")]


def test_headings_name_the_chapters_where_there_are_no_contents() -> None:
    files = make.epub_files("Book", CHAPTERS)
    files["OEBPS/nav.xhtml"] = "<broken"
    assert [chapter for _, _, chapter in places(read(make.make_zip(files)))] == ["The Sea", "The Land"]


def test_an_epub_may_encrypt_its_fonts() -> None:
    assert read(make.encrypted_epub("OEBPS/font.otf")).text == "One\n\nText.\n"


def test_a_word_file_has_headings_lists_and_tables() -> None:
    document = read(make.make_docx())
    assert document.text == (
        "Report\n\nTowns\n\nThere are some towns.\n\n  * Ulm\n  * Trier\n\n"
        "Numbers\n\nTown | People\nUlm | 126000\n\nThat is all.\n"
    )
    assert [chapter for _, _, chapter in places(document)] == ["Report", "Towns", "Numbers"]


# ---- errors


def bomb(**files: int) -> bytes:
    return make.make_zip(
        {"META-INF/container.xml": "<a/>", **{name: bytes(size) for name, size in files.items()}}
    )


def without(files: dict[str, str | bytes], *names: str) -> bytes:
    return make.make_zip({name: content for name, content in files.items() if name not in names})


EPUB_FILES = make.epub_files("Book", CHAPTERS)
DOCTYPE = '<!DOCTYPE w [<!ENTITY a "b">]><w:document xmlns:w="w">&a;</w:document>'
COMPOUND = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.pdf", make.encrypted_pdf(), "needs a password"),
        ("a.pdf", make.scanned_pdf(3), "has 3 pages and no text: it seems to be scanned"),
        ("a.pdf", make.scanned_pdf(1), "has 1 page and no text"),
        ("a.pdf", b"nonsense", "no PDF, or a damaged one"),
        ("a.pdf", make.make_pdf(["a"])[:300], "no PDF, or a damaged one"),
        ("a.pdf", b"", "is empty"),
        ("a.epub", make.make_epub("Book", CHAPTERS)[:-40], "damaged or cut short"),
        ("a.epub", make.encrypted_epub("OEBPS/chapter1.xhtml"), "encrypted by its seller"),
        ("a.epub", without(EPUB_FILES, "OEBPS/chapter1.xhtml"), r"lacks 'OEBPS/chapter1\.xhtml'"),
        ("a.epub", without(EPUB_FILES, "META-INF/container.xml"), "lacks 'META-INF/container.xml'"),
        ("a.epub", make.make_zip({**EPUB_FILES, "OEBPS/book.opf": "<package>"}), "XML is not well-formed"),
        ("a.epub", make.make_epub("Book", []), "holds no text"),
        ("a.epub", bomb(big=50_000_000), "times its size"),
        ("a.epub", bomb(**{f"{number}.xml": 30_000_000 for number in range(5)}), "unpacks to too much"),
        ("a.docx", b"nonsense", "damaged or cut short"),
        ("a.docx", without(make.docx_files(""), "word/document.xml"), "cannot be read"),
        ("a.docx", make.make_zip({"a": "b"}), "is no Word file"),
        (
            "a.docx",
            make.make_zip({**make.docx_files(""), "word/document.xml": DOCTYPE}),
            "declares a document type",
        ),
        ("a.docx", make.make_zip(make.docx_files("")), "holds no text"),
        ("a.docx", COMPOUND + "EncryptedPackage".encode("utf-16-le"), "needs a password"),
        ("a.doc", COMPOUND + "WordDocument".encode("utf-16-le"), r"old kind \(\.doc\)"),
        ("a.xls", COMPOUND, "an Office file of an old kind"),
        ("a.rtf", rb"{\rtf1 text}", "Rich Text Format"),
        ("a.html", b"<p> </p>", "holds no text"),
        ("a.html", b"<p>a\0b", "binary data"),
        ("a.html", b"<div>" * 300 + b"text", "nested too deeply"),
        ("a.txt", bytes(range(256)), "not UTF-8 text"),
        ("a.txt", b"a\0b", "binary data"),
        ("a.txt", b" \n", "is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        read(data, name)
    said = str(refused.value)
    assert said.startswith(f"The document {name!r} ") and said.endswith(".") and "\n" not in said


@pytest.mark.parametrize(
    ("package", "data"),
    [
        ("pypdfium2", make.make_pdf(["a"])),
        ("lxml", make.HTML_PAGE.encode()),
        ("inscriptis.html_engine", make.HTML_PAGE.encode()),
        ("mammoth", make.make_docx()),
        ("lxml", make.make_epub("Book", CHAPTERS)),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    package: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"needs \w+: pip install 'hiermem-torch\[documents\]'\.$"):
        read(data)


# ---- damaged bytes


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes cut short, with some changed, or with a piece taken out or put in twice."""
    changed = bytearray(data)
    at, size = draw.randrange(len(data)), draw.randrange(1, 200)
    way = draw.randrange(4)
    if way == 0:
        return data[:at]
    if way == 1:
        for _ in range(draw.randrange(1, 20)):
            changed[draw.randrange(len(data))] = draw.randrange(256)
    elif way == 2:
        del changed[at : at + size]
    else:
        changed[at:at] = changed[at : at + size]
    return bytes(changed)


SOUND: dict[str, Callable[[], bytes]] = {
    "book.pdf": lambda: make.make_book_pdf([("One", make.PROSE * 3), ("Two", make.PROSE)]),
    "rtl.pdf": make.right_to_left_pdf,
    "book.epub": lambda: make.make_epub("Book", CHAPTERS),
    "old.epub": make.older_epub,
    "report.docx": make.make_docx,
    "page.html": make.HTML_PAGE.encode,
}


def outcome(data: bytes, name: str) -> Document | str:
    """The document, or the sentence that refuses it."""
    try:
        return read(data, name)
    except InputError as error:
        return str(error)


def check_outcome(outcome: Document | str) -> None:
    if isinstance(outcome, str):
        assert outcome.startswith("The document '") and outcome.endswith(".") and "\n" not in outcome
    else:
        outcome.text.encode()
        assert "\0" not in outcome.text and outcome.text.strip() and outcome.kind in KINDS


@pytest.mark.parametrize("name", SOUND)
def test_damaged_bytes_give_a_document_or_a_sentence(name: str) -> None:
    draw, sound = random.Random(name), SOUND[name]()
    check_outcome(read(sound, name))
    for _ in range(60):
        check_outcome(outcome(damaged(sound, draw), name))


@pytest.mark.parametrize("make_files", [lambda: EPUB_FILES, lambda: make.docx_files("<w:p/>")])
def test_damaged_files_in_archives_give_a_document_or_a_sentence(
    make_files: Callable[[], dict[str, str | bytes]],
) -> None:
    """Archives have checksums, so damage is done before they are packed."""
    draw = random.Random(3)
    for _ in range(60):
        files = dict(make_files())
        name = draw.choice(sorted(files))
        content = files[name]
        files[name] = damaged(content.encode() if isinstance(content, str) else content, draw)
        for ending in ("a.epub", "a.docx"):
            check_outcome(outcome(make.make_zip(files), ending))


# ---- by name


def test_a_file_is_called_by_its_name_or_as_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "book.pdf"
    file.write_bytes(make.make_pdf(["One line."]))
    document = open_document(file)
    assert (document.name, document.kind, document.text) == ("book.pdf", "pdf", "One line.\n")
    assert document.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert open_document(str(file), "shelf/book").name == "shelf/book"
    assert open_named(str(file)) == document
    assert read_document(str(file)) == document.text
    with pytest.raises(InputError, match=r"missing\.pdf' cannot be read"):
        open_document(tmp_path / "missing.pdf")


def test_standard_input_and_bundled_documents_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer: Any = io.BytesIO(make.make_pdf(["One line."]))

    monkeypatch.setattr(sys, "stdin", Input)
    assert open_named("-").kind == "pdf"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="Standard input is closed"):
        read_document("-")
    (bundled, *_) = BUNDLED_DOCUMENTS
    document = open_named(bundled)
    assert (document.name, document.kind, document.text) == (bundled, "text", read_document(bundled))
