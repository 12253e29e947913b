"""Where sentences of prose and rows of lists begin and end."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiermem.retrieval.units import LONGEST, split

PROSE = (
    "The brass key hangs behind the green clock of the\n"
    "harbour office. It was put there by Ingrid Sandvik,\n"
    "who keeps the books. Nobody else knows of it, and\n"
    "the clock has not been opened for years. She told\n"
    "Emily of it once, on a day when it rained.\n"
)
MARKS = st.text(st.sampled_from(' \n\t.!?…:;,|-\u00ad"”’)aBé1東。」\u0301'), max_size=400)


def pieces(text: str) -> list[str]:
    return [text[unit.start : unit.end] for unit in split(text)]


@pytest.mark.parametrize(
    "parts",
    [
        [
            "“I saw Mr. Smith and Dr. Wilson at 5 p.m. today.” ",
            "He left. ",
            "So did I. ",
            "Who is K. Le Moyne?",
        ],
        ["It rose (Fig. 2, e.g. in mice). ", "P was .05 vs. .01. ", "25 died! ", "“Stop!” he said."],
        ["猫は窓の下で眠った。", "「誰？」", "と船長は言った。"],
    ],
)
def test_titles_initials_and_shortened_words_end_no_sentence(parts: list[str]) -> None:
    assert pieces("".join(parts)) == parts


def test_sentences_of_prose_go_on_over_the_ends_of_lines() -> None:
    assert [" ".join(piece.split()) for piece in pieces(PROSE + "\n" + PROSE[:101])] == [
        "The brass key hangs behind the green clock of the harbour office.",
        "It was put there by Ingrid Sandvik, who keeps the books.",
        "Nobody else knows of it, and the clock has not been opened for years.",
        "She told Emily of it once, on a day when it rained.",
        "The brass key hangs behind the green clock of the harbour office.",
        "It was put there by Ingrid Sandvik,",
    ]


def test_a_full_line_of_prose_that_ends_with_a_sentence_runs_on() -> None:
    speech = (
        "I told you why I came, and nobody of the crew has an\n"
        "answer to it, have you. The sea is long and it is cold.\n"
        "And what do I get? The pass key is 43348. Remember it. I am alone,\n"
        "Tillie!\n"
    )
    sentences = [piece.strip() for piece in pieces(PROSE + "\n" + speech)]
    assert "The pass key is 43348." in sentences


def test_words_broken_at_the_end_of_a_line_join_lines() -> None:
    text = "The pass-\nword of the ar-\nchive is tulip.\n"
    assert pieces(text) == [text]


ROWS = {
    "list": ["Ann Berg: 10007\n", "Bob Lund: 14398\n", "Cy Moe: 18789\n"],
    "log": ["09:01 order 17 failed. Retry in 5 s.\n", "09:02 order 18 sent\n", "09:07 order 19 sent\n"],
    "wide": [
        f"item {i} costs {i * 7} crowns, is kept in the long {'old ' * (i * 5 % 7)}hall\n" for i in range(9)
    ],
    "small": [f"{word} stands in the hall\n" for word in ("tulip", "rose", "lily")],
    "csv": ["Ann Berg,Oslo,10007\n", "Bob Lund,Bergen,14398\n", "Cy Moe,Oslo,18789\n"],
    "indented": ["ann:\n  badge 17\n", "bob:\n  badge 18\n", "cy:\n  badge 19\n"],
    "apart": ["Ann Berg: 10007\n\n", "Bob Lund: 14398\n\n", "Cy Moe: 18789\n"],
    "long": [f"{name}," + ",".join(f"field {i}" for i in range(40)) + "\n" for name in ("Ann", "Bob", "Cy")],
    "asked": [
        "How is it opened?\nWith the key. Then push.\n\n",
        "What does it cost?\n17 kr\n\n",
        "Why?\nSo.\n",
    ],
    "asked, apart": [
        "How is it opened?\n\nWith the key.\n\n",
        "What does it cost?\n\n17 kr\n\n",
        "Why?\n\nSo.\n",
    ],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("before", ["", PROSE + "\n"], ids=["alone", "in prose"])
def test_rows_are_units(rows: list[str], before: str) -> None:
    assert pieces(before + "".join(rows))[-len(rows) :] == rows


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("Staff phone extensions\n", ROWS["list"]),
        ("Staff phone extensions\n\n", ROWS["list"]),
        ("name,town,badge\n", ROWS["csv"]),
        ("name,town\n", ["Ann,Oslo\n", "Bob,Bergen\n", "Cy,Oslo\n"]),
        ("In the hall:\n", ROWS["small"]),
    ],
)
def test_the_line_over_the_rows_is_their_header(header: str, rows: list[str]) -> None:
    first, *others = split(header + "".join(rows))
    assert first.is_header and first.end == len(header)
    assert {unit.header for unit in others} == {first.header} and not any(unit.is_header for unit in others)


@pytest.mark.parametrize("name", ["list", "log", "wide", "small"])
def test_rows_without_a_header_have_none(name: str) -> None:
    assert {unit.header for unit in split("".join(ROWS[name]))} == {None}


@pytest.mark.parametrize("text", ["", "x" * 1000, "no end in sight " * 80, "日本語。" * 200, "\n\n\n" * 90])
def test_units_cover_any_text_within_the_limit(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert all(0 < len(piece) <= LONGEST for piece in pieces(text) if piece.strip())


@settings(deadline=None, max_examples=150)
@given(MARKS, st.integers(1, 5))
def test_units_cover_texts_of_marks(text: str, times: int) -> None:
    units = split(text * times)
    bounds = [0, *(unit.end for unit in units)]
    assert [unit.start for unit in units] == bounds[:-1] and bounds[-1] == len(text * times)


@pytest.mark.parametrize("mark", [" ", ", ", ";", "\t"])
def test_no_word_or_number_is_cut(mark: str) -> None:
    words = ["1,234,567.89", "harbour", "don't", "2024-05-01"]
    text = mark.join(random.Random(0).choices(words, k=400))
    found = [word for piece in pieces(text) for word in piece.split(mark)]
    assert {word.strip() for word in found} <= {*words, ""}
    assert len(pieces(text)) > 5
