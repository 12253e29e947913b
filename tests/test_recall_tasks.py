"""HashHop and MQAR: made-up texts, their questions, and how answers are judged."""

import random
import re
from typing import Any

import pytest
import torch
from commands import assert_refused, run
from readers import reader

from hiermem.errors import InputError
from hiermem.eval.answering import Response
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tasks import hashhop, mqar
from hiermem.eval.tasks.documents import Question
from hiermem.text import encode


def said(text: str) -> Response:
    return Response(text, [], True, 5, 0, 0.0)


def tokens(text: str) -> int:
    return len(encode(reader().tokenizer, text))


def test_a_chain_is_as_many_assignments_and_ends_in_quotes() -> None:
    assert hashhop.assignments(["a", "b"]) == ["a = 'b'"]
    assert hashhop.assignments(["a", "b", "c", "d"]) == ["a = b", "b = c", "c = 'd'"]


@pytest.mark.parametrize("hops", [1, 3])
def test_the_text_leads_from_the_question_to_the_answer(hops: int) -> None:
    task = hashhop.HashHop(hops=(hops,), lengths=(900,), limit=2, questions=3, seed=4)
    documents = task.documents(reader(), None)
    assert documents == task.documents(reader(), None) and documents[0] != documents[1]
    for document in documents:
        lines = document.text.splitlines()
        pairs = dict(line.split(" = ") for line in lines)
        assert len(pairs) == len(lines) and len(lines) % hops == 0
        assert all(re.fullmatch(r"[A-Za-z]{16} = ('?)[A-Za-z]{16}\1", line) for line in lines)
        assert 900 - hops * 45 < tokens(document.text) <= 900
        assert len({question.text for question in document.questions}) == 3
        for question in document.questions:
            value = question.lead.removesuffix(" = '")
            assert value in question.text
            for _ in range(hops):
                value = pairs[value]
            assert value == f"'{question.answers[0]}'"


def test_texts_that_are_too_short_are_refused() -> None:
    task = hashhop.HashHop(hops=(2,), lengths=(100,), questions=5)
    with pytest.raises(InputError, match=r"holds \d chains of 2 hops: raise --lengths or lower --questions"):
        task.documents(reader(), None)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("abcDEF'", True), ("'abcDEF'", True), ("abcDEFg", False), ("abcdef", False), ("", False)],
)
def test_the_first_hash_is_the_answer(answer: str, right: bool) -> None:
    question = Question(key="", text="", answers=("abcDEF",))
    assert hashhop.HashHop().scores(question, said(answer)) == {"score": right}


@pytest.mark.parametrize("length", [0, 700])
def test_pairs_stand_first_and_every_key_is_asked_for(length: int) -> None:
    task = mqar.Mqar(pairs=(6,), lengths=(length,), limit=2, seed=4)
    documents = task.documents(reader(), None)
    assert documents == task.documents(reader(), None) and documents[0] != documents[1]
    for document in documents:
        lines, _, filler = document.text.partition("\n\n")
        pairs = dict(line.split(": ") for line in lines.splitlines())
        assert len({*pairs, *pairs.values()}) == 12
        assert not {*pairs, *pairs.values()} & set(filler.split())
        asked = {question.lead.removesuffix(":"): question.answers for question in document.questions}
        assert asked == {key: (value,) for key, value in pairs.items()}
        assert all(question.lead.removesuffix(":") in question.text for question in document.questions)
        assert bool(filler) == bool(length)
        if length:
            assert tokens(document.text) == pytest.approx(length, abs=8)


def test_pairs_that_fill_a_text_are_refused() -> None:
    with pytest.raises(InputError, match=r"40 pairs take \d+ tokens, so no text of 100"):
        mqar.Mqar(pairs=(40,), lengths=(100,)).documents(reader(), None)


@pytest.mark.parametrize(
    ("answer", "right"), [(" Bedofu\n", True), ("the bedofu", False), ("bedofus", False), ("", False)]
)
def test_the_first_word_is_the_value(answer: str, right: bool) -> None:
    question = Question(key="", text="", answers=("bedofu",))
    assert mqar.Mqar().scores(question, said(answer)) == {"score": right}


def test_words_are_told_apart() -> None:
    words = mqar.distinct_words(3000, random.Random(0))
    assert len(set(words)) == 3000 and all(re.fullmatch(r"([b-z][aeiou]){3}", word) for word in words)


def test_the_interval_is_over_texts() -> None:
    """Answers of one text hang together: all right in one, all wrong in the other, is two cases."""
    rows = [
        {"pairs": 4, "length": 0, "text": text, "score": right}
        for text, right in ((0, True), (1, False))
        for _ in range(4)
    ]
    (line,) = mqar.Mqar(pairs=(4,), lengths=(0,)).result(rows)["rows"]
    assert line == {"pairs": 4, "length": 0, "score": 0.5, "interval": (0.0, 1.0), "n": 8}


@pytest.mark.parametrize(
    ("task", "setting", "n"),
    [
        (hashhop.HashHop(hops=(1, 2), lengths=(300,), limit=1, questions=2), "hops", 4),
        (mqar.Mqar(pairs=(2, 3), lengths=(200,), limit=1, method="closed"), "pairs", 5),
    ],
)
@torch.inference_mode()
def test_a_run_scores_every_cell(task: Any, setting: str, n: int) -> None:
    result = task.measure(reader(), task.load(None), ResultLog(None, {}))
    assert result["n"] == n and len(result["rows"]) == 2
    assert {setting, "length", "score", "interval", "n"} == set(result["rows"][0])
    settings = task.settings(None, None)
    assert settings["system"] == task.method and "method" not in settings
    assert any(
        " mean of all " in line and " 2 |" in line for line in task.table([{**result, "config": settings}])
    )


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["hashhop", "--hops", "0"], "--hops takes numbers from 1 on"),
        (["hashhop", "--hops", "2,2"], "none twice"),
        (["hashhop", "--questions", "0"], "'--questions'"),
        (["mqar", "--pairs", "0,4"], "--pairs takes numbers from 1 to"),
        (["mqar", "--pairs", "99999"], "--pairs takes numbers from 1 to"),
        (["mqar", "--lengths", ""], "whole numbers"),
        (["mqar", "--method", "magic"], "no method 'magic'"),
    ],
)
def test_wrong_options_are_refused(command: list[str], expected: str) -> None:
    assert_refused(run("eval", *command, "--model", "missing"), expected)
