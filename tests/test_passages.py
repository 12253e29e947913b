"""Which sentences and rows of recalled segments stand before a question."""

import pytest
import torch

from hiermem.memory.longterm import Hit, SegmentRecord
from hiermem.memory.records import RecordTexts
from hiermem.passages import QueryTerms, Source, select
from hiermem.retrieval.keys import LexicalKey, Text

FACT = "The brass key hangs behind the green clock. "
QUESTION = "Where hangs the brass key?"
FILLER = [f"Sentence number {i} tells the reader of nothing at all. " for i in range(12)]


def recalled(*texts: str) -> tuple[list[Hit], LexicalKey]:
    """Segments one after another in a document, all of them recalled."""
    key, hits, at = LexicalKey(), [], 0
    for index, text in enumerate(texts):
        record = SegmentRecord(0, torch.zeros(1, dtype=torch.int32), at, at + len(text), text)
        hits.append(Hit(index, 9.0 - index, record))
        key.observe([Text(text)])
        at += len(text)
    return hits, key


def chosen(
    hits: list[Hit], key: LexicalKey, question: str, characters: int, least_score: float
) -> list[Source]:
    records = [hit.record for hit in hits]
    return select(hits, RecordTexts(records), QueryTerms(key, question), characters, least_score).sources


def shown(
    texts: list[str], characters: int, least_score: float = 0.0, question: str = QUESTION
) -> list[Source]:
    hits, key = recalled(*texts)
    sources = chosen(hits, key, question, characters, least_score)
    document = "".join(texts)
    assert all(document[source.start : source.end] == source.text for source in sources)
    scores = [source.score for source in sources]
    assert scores == sorted(scores, reverse=True)
    return sources


@pytest.mark.parametrize("characters", [10, 60, 120, 300, 10_000])
def test_the_best_sentence_is_there_and_the_rest_has_room(characters: int) -> None:
    texts = ["".join(FILLER[:7]) + FACT + "".join(FILLER[7:]), "".join(FILLER)]
    sources = shown(texts, characters)
    assert FACT in sources[0].text
    total = sum(len(source.text) for source in sources)
    assert total <= max(characters, len(FACT)) or total == sum(map(len, texts))


def test_a_sentence_with_all_words_of_the_question_stands_alone() -> None:
    texts = ["".join(FILLER[:4]) + FACT + "".join(FILLER[4:])]
    assert [source.text for source in shown(texts, 200, least_score=0.7)] == [FACT]
    (around,) = shown(texts, 200, least_score=0.7, question="Where hangs the brass key of the captain?")
    assert FACT in around.text and len(FACT) < len(around.text) <= 200


def test_weak_sentences_are_left_out() -> None:
    paragraphs = [*FILLER[:5], FACT, *FILLER[5:]]
    texts = ["".join(f"{paragraph.strip()}\n\n" for paragraph in paragraphs)]
    assert [source.text.strip() for source in shown(texts, 10_000, least_score=0.7)] == [FACT.strip()]


def test_neighbours_are_one_passage_over_the_end_of_a_segment_too() -> None:
    other = "The green clock hides the brass key. "
    for texts in ([FILLER[0] + FACT + other + FILLER[1]], [FILLER[0] + FACT, other + FILLER[1]]):
        (source,) = shown(texts, len(FACT + other))
        assert (source.text, source.segment) == (FACT + other, 0)
    apart = [FILLER[0] + FACT, "".join(FILLER), other + FILLER[1]]
    hits, key = recalled(*apart)
    records = [hit.record for hit in hits]
    sources = select(
        [hits[0], hits[2]], RecordTexts(records), QueryTerms(key, QUESTION), len(FACT + other), 0.0
    ).sources
    assert {source.segment: source.text for source in sources} == {0: FACT, 2: other}


@pytest.mark.parametrize("cut", range(1, len(FACT) - 1, 5))
def test_no_sentence_is_cut_where_a_segment_ends(cut: int) -> None:
    texts = [FILLER[0] + FACT[:cut], FACT[cut:] + FILLER[1]]
    hits, key = recalled(*texts)
    records = [hit.record for hit in hits]
    for hit in hits:
        sources = select(
            [hit], RecordTexts(records), QueryTerms(key, "Where is the brass clock?"), 1, 0.7
        ).sources
        assert [source.text for source in sources] in ([FACT], [])
    assert [source.text for source in shown(texts, 1, 0.7)] == [FACT]


def test_words_in_every_segment_do_not_count_for_much() -> None:
    common = "Where is the man? The man is where the house is. "
    sources = shown([common * 6, common * 6 + FACT + common * 6, common * 6], 50)
    assert [source.text for source in sources] == [FACT]


def test_a_long_sentence_has_no_advantage() -> None:
    long = (
        "The brass clock and the green door and the red wall and the old chair and the key of the barn fell. "
    )
    assert shown([long + FACT], 1)[0].text == FACT


def test_a_heading_goes_with_what_follows_it() -> None:
    text = "The brass key\n=============\n\nIt hangs behind the green clock. "
    assert shown([FILLER[0] + text + FILLER[1]], 1)[0].text == text


@pytest.mark.parametrize("characters", [0, 200])
def test_nothing_in_common_gives_no_passage(characters: int) -> None:
    hits, key = recalled("".join(FILLER), FACT)
    for question in ("Quantum chromodynamics?", "Who is the president of France?", "?"):
        assert chosen(hits, key, question, characters, 0.7) == []
    assert chosen(hits, key, "What does the reader do?", characters, 0.7)
    assert select([], RecordTexts([]), QueryTerms(key, QUESTION), characters, 0.7).sources == []


def test_a_question_of_function_words_alone_is_taken_by_its_word() -> None:
    assert [source.text for source in shown([FILLER[0] + "Who is he? "], 1, 0.7, "Who is he?")] == [
        "Who is he? "
    ]


def test_no_limit_takes_whole_segments() -> None:
    texts = ["".join(FILLER), FACT]
    sources = shown(texts, 0, 0.7)
    assert [(source.text, source.score) for source in sources] == [(FACT, 8.0)]


@pytest.mark.parametrize("question", ["What is the badge of Bob Lund?", "Bob Lund"])
def test_a_header_goes_with_its_row_and_never_stands_for_it(question: str) -> None:
    header = "name,badge,town\n"
    rows = [
        f"{name} {last},{i * 37 + 100},Oslo\n"
        for i, name in enumerate(("Ann", "Bob", "Cy", "Di"))
        for last in ("Berg", "Lund", "Moe")
    ]
    sources = shown([header + "".join(rows)], 600, 0.7, question)
    assert [source.text for source in sources] == [rows[4], header]
    assert [source.text for source in shown([header + "".join(rows)], len(rows[4]), 0.7, question)] == [
        rows[4]
    ]
