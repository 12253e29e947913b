"""BABILong: official stories as they are read, scattered and judged."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_refused, run
from readers import reader, text_of
from stories import ONE, PATH, TWO, write_stories

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval import babi
from hiermem.eval.answering import Response
from hiermem.eval.babi import Story
from hiermem.eval.haystack import Haystack
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tasks import babilong
from hiermem.passages import Source

BOOK = text_of(4000).replace(" and ", ". ")
CONFIG = HierMemConfig()


def haystack() -> Haystack:
    return Haystack(reader().tokenizer, BOOK)


def task(folder: Path, **options: Any) -> babilong.BabiLong:
    return babilong.BabiLong(haystack="book.txt", **{"data": folder, "tasks": (1, 2), "limit": 2} | options)


def texts(folder: Path, *tasks: int) -> babilong.Texts:
    return babilong.Texts(BOOK, {number: babi.load(folder, number, "test") for number in tasks})


# ---- stories


def test_a_story_has_all_facts_before_its_question_and_no_question() -> None:
    first, second, third = babi.parse(ONE)
    facts = ("Mary moved to the bathroom.", "John went to the hallway.", "Mary went back to the garden.")
    assert first == Story(facts[:2], "Where is Mary?", "bathroom", (0,))
    assert second == Story(facts, "Where is Mary?", "garden", (2,))  # line 4 is its third fact
    assert third == Story(("Daniel travelled to the office.",), "Where is Daniel?", "office", (0,))
    assert [story.support for story in babi.parse(TWO)] == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mary moved.\n", "line 1 is not numbered"),
        ("1 Mary moved.\n3 John went.\n", "line 2 is not numbered"),
        ("2 Mary moved.\n", "line 1 is not numbered"),
        ("1 Mary moved.\n\n2 John went.\n", "line 2 is not numbered"),
        ("1 Mary moved.\n2 Where is Mary?\tgarden\n", "line 2 is no question"),
        ("1 Mary moved.\n2 Where is Mary?\t\t1\n", "line 2 is no question"),
        ("1 Mary moved.\n2 Where is Mary?\tgarden\t1\t1\n", "line 2 is no question"),
        ("1 Mary moved.\n2 Where is Mary?\tgarden\t3\n", "line 2 names facts"),
        ("1 Mary moved.\n2 Where is Mary?\tgarden\tone\n", "line 2 names facts"),
        ("1 Mary moved.\n2 Where is Mary?\tgarden\t\n", "line 2 names facts"),
        ("1 Mary moved.\n", "holds no question"),
    ],
)
def test_malformed_stories_are_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "qa1_x_test.txt").write_text(text)
    with pytest.raises(InputError, match=expected):
        babi.load(tmp_path, 1, "test")


def test_missing_doubled_and_binary_files_are_refused(tmp_path: Path) -> None:
    write_stories(tmp_path)
    assert len(babi.load(tmp_path, 1, "test")) == 3  # not the file of task 19
    with pytest.raises(InputError, match=r"no file qa3_\*_test\.txt"):
        babi.load(tmp_path, 3, "test")
    (tmp_path / "qa2_again_test.txt").write_text(TWO)
    with pytest.raises(InputError, match=r"more than one file qa2"):
        babi.load(tmp_path, 2, "test")
    (tmp_path / "qa5_x_test.txt").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="holds no bAbI stories"):
        babi.load(tmp_path, 5, "test")


# ---- judging


PLACES = frozenset({"garden", "kitchen", "hallway"})


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("garden", True),
        ("Mary is in the GARDEN.", True),
        ("The garden. Before, it was the kitchen.", True),  # the first sentence counts
        ("The garden or the kitchen.", False),
        ("The gardener.", False),  # whole words
        ("From the hallway to the garden", True),  # what the question names does not count
        ("The document does not say.", False),
        ("", False),
    ],
)
def test_an_answer_names_the_right_word_and_no_other_candidate(output: str, right: bool) -> None:
    assert babi.is_right(output, "Where was it after the hallway?", "garden", PLACES, False) is right


def test_answers_of_several_words() -> None:
    things = frozenset({"apple", "milk", "nothing"})
    question = "What is Mary carrying?"
    for output, right in (
        ("The milk and the apple", True),
        ("apple", False),
        ("apple, milk, nothing", False),
    ):
        assert babi.is_right(output, question, "apple,milk", things, False) is right
    ways = babi.answer_words(list(babi.parse(PATH)))
    assert ways == {"w", "s", "e"}
    for output, right in (("s, e", True), ("e,s", False), ("s", False), ("s,e,e", False)):
        assert babi.is_right(output, "How do you go?", "s,e", ways, True) is right


# ---- texts


def test_facts_stand_in_their_order_in_a_text_of_the_length(tmp_path: Path) -> None:
    folder = write_stories(tmp_path)
    model = reader()
    documents = task(folder, lengths=(0, 600)).documents(model, texts(folder, 1, 2))
    assert len(documents) == 8
    assert documents == task(folder, lengths=(0, 600)).documents(model, texts(folder, 1, 2))
    assert documents != task(folder, lengths=(0, 600), seed=1).documents(model, texts(folder, 1, 2))
    for document in documents:
        (question,) = document.questions
        about = dict(question.about)
        stories = babi.load(folder, about["task"], "test")
        story = next(s for s in stories if (s.question, (s.answer,)) == (question.text, question.answers))
        spans = [document.text[start:end] for start, end in question.evidence]
        assert spans == [story.facts[place] for place in story.support]
        at = 0
        for fact in story.facts:
            at = document.text.index(fact, at) + len(fact)
        if about["length"]:
            assert haystack().tokens(document.text) == pytest.approx(600, rel=0.03)
        else:
            assert document.text == " ".join(story.facts)
    asked = [(d.questions[0].about[0], d.questions[0].text, d.questions[0].answers) for d in documents]
    assert asked[:2] == asked[2:4] and asked[4:6] == asked[6:8]  # the same stories at every length


def test_spans_of_facts_that_are_told_twice() -> None:
    facts = ("Mary moved.", "John went.", "Mary moved.")
    text, spans = babilong.scattered(haystack(), facts, 400, random.Random(3))
    assert [text[start:end] for start, end in spans] == list(facts)
    assert spans == sorted(set(spans))


def test_stories_that_leave_no_room_are_left_out(tmp_path: Path) -> None:
    folder = write_stories(tmp_path)
    long = max(haystack().tokens(" ".join(story.facts)) for story in babi.parse(ONE))
    with pytest.raises(InputError, match=r"Task 1 has 2 stories .* lower --limit or raise --lengths"):
        task(folder, tasks=(1,), limit=3, lengths=(0, long + 31)).documents(reader(), texts(folder, 1))
    assert len(task(folder, tasks=(1,), limit=3, lengths=(0,)).documents(reader(), texts(folder, 1))) == 3
    with pytest.raises(InputError, match="Task 1 has 3 stories"):
        task(folder, tasks=(1,), limit=4, lengths=(0,)).documents(reader(), texts(folder, 1))


# ---- results


def test_scores_and_what_was_recalled(tmp_path: Path) -> None:
    folder = write_stories(tmp_path)
    asking = task(folder, tasks=(2,), lengths=(0,))
    document = asking.documents(reader(), texts(folder, 2))[0]
    (question,) = document.questions
    (start, _), (_, end) = question.evidence
    cut = Response("x", [Source(0, start, end - 1, 1.0, "")], True, 5, 0, 0.0)
    whole = replace(cut, text=f"The {question.answers[0]}.", sources=[Source(0, start, end, 1.0, "")])
    assert asking.scores(question, cut) == {"score": False, "recalled": False}
    assert asking.scores(question, whole) == {"score": True, "recalled": True}
    assert task(folder, tasks=(2,), method="full").scores(question, whole) == {"score": True}


def test_rows_by_task_and_length() -> None:
    asking = task(Path("babi"))
    rows = [
        {"task": number, "length": length, "text": text, "score": score}
        for number, length, scores in ((1, 0, (1, 1)), (1, 500, (1, 0)), (2, 0, (0, 0)))
        for text, score in enumerate(scores)
    ]
    result = asking.result(rows)
    assert result["metrics"] == {"score": 0.5} and result["n"] == 6
    assert [(row["task"], row["length"], row["score"], row["n"]) for row in result["rows"]] == [
        (1, 0, 1.0, 2),
        (1, 500, 0.5, 2),
        (2, 0, 0.0, 2),
    ]
    report = {**result, "config": {"system": "full"}}
    table = "\n".join(asking.table([report, {**report, "config": {"system": "bm25"}}]))
    assert "Score, length 0:\n\n| method | mean of all | 1 |" in table and "Score, length 500:" in table
    assert "| full | 0.500 (0.000 to 1.00) | 1.00 | 0.000 | 4 |" in table


@torch.inference_mode()
def test_a_run_has_a_row_for_each_task_and_length(tmp_path: Path) -> None:
    folder = write_stories(tmp_path)
    asking = task(folder, lengths=(0, 400), tasks=(1, 19))
    result = asking.measure(reader(), texts(folder, 1, 19), ResultLog(None, {}))
    assert [(row["task"], row["length"]) for row in result["rows"]] == [(1, 0), (1, 400), (19, 0), (19, 400)]
    assert all(row["n"] == 2 and 0 <= row["recalled"] <= 1 for row in result["rows"])
    assert {"answer", "prompt_tokens", "live_bytes"} <= set(result["examples"][0])


def test_the_instruction_is_that_of_the_task() -> None:
    assert task(Path("babi")).configure(CONFIG).asking.instruction == babilong.INSTRUCTION


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--tasks", "21"], "There is no bAbI task 21"),
        (["--tasks", "1,1"], "--tasks takes at least one number, and none twice"),
        (["--lengths", "0,0"], "--lengths takes at least one number, and none twice"),
        (["--split", "validation"], "no split 'validation'"),
        (["--split", "train"], "no file qa1_*_train.txt"),
        (["--data", "missing"], "no file qa1_*_test.txt in missing"),
        (["--stories", "2"], "No such option"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(
    options: list[str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text(BOOK, "utf-8")
    command = ["eval", "babi-long", "--haystack", tmp_path / "book.txt", "--tasks", "1", "--model", "missing"]
    command += ["--data", write_stories(tmp_path / "babi")]
    assert_refused(run(*command, *options), expected)
