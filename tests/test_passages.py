"""Which sentences of recalled segments stand before a question."""

import pytest
import torch

from hiermem.memory.longterm import Hit, Record
from hiermem.passages import Source, select, sentences
from hiermem.retrieval.lexical import LexicalKey

FACT = "The brass key hangs behind the green clock. "
QUESTION = "Where hangs the brass key?"
FILLER = [f"Sentence number {i} tells the reader of nothing at all. " for i in range(12)]


def recalled(*texts: str) -> tuple[list[Hit], LexicalKey]:
    """Segments one after another in a document, all of them recalled."""
    key, hits, at = LexicalKey(), [], 0
    for index, text in enumerate(texts):
        record = Record(0, torch.zeros(1, dtype=torch.int32), at, at + len(text), text)
        hits.append(Hit(index, 9.0 - index, record))
        key.observe(text)
        at += len(text)
    return hits, key


def shown(texts: list[str], characters: int, least_score: float = 0.0) -> list[Source]:
    hits, key = recalled(*texts)
    sources = select(hits, QUESTION, key, characters, least_score)
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


def test_weak_sentences_are_left_out() -> None:
    texts = ["".join(FILLER[:5]) + FACT + "".join(FILLER[5:])]
    assert [source.text for source in shown(texts, 10_000, least_score=0.7)] == [FACT]


def test_neighbours_are_one_passage_but_never_over_two_segments() -> None:
    other = "The green clock hides the brass key. "
    (source,) = shown([FILLER[0] + FACT + other + FILLER[1]], 100, 0.5)
    assert source.text == FACT + other
    assert [source.segment for source in shown([FILLER[0] + FACT, other + FILLER[1]], 100, 0.5)] == [0, 1]


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


def test_nothing_in_common_still_gives_passages_with_room() -> None:
    hits, key = recalled("".join(FILLER))
    sources = select(hits, "Wherefore?", key, 200, 0.7)
    assert 0 < sum(len(source.text) for source in sources) <= 200
    assert select([], QUESTION, key, 200, 0.7) == []


def test_no_limit_takes_whole_segments() -> None:
    texts = ["".join(FILLER), FACT]
    sources = shown(texts, 0, 0.7)
    assert [(source.text, source.score) for source in sources] == [(texts[0], 9.0), (FACT, 8.0)]


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
    text = "".join(parts)
    assert [text[a:b] for a, b in sentences(text)] == parts


@pytest.mark.parametrize("text", ["", "x" * 1000, "no end in sight " * 80, "日本語。" * 200, "\n\n\n" * 90])
def test_sentences_cover_any_text_within_the_limit(text: str) -> None:
    spans = sentences(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(0 < b - a <= 300 for a, b in spans)
