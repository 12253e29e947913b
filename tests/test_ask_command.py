"""`hiermem ask`: on a terminal, in a pipe, of several questions, and as a conversation."""

import json
import os
import pty
import re
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import assert_refused, result, run
from readers import text_of

from hiermem.memory.longterm import LongTermConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel

SMALL = ["--budget", "24", "--segment", "32", "--chunk", "16"]
FEW = ("--max-new-tokens", 8)
QUESTIONS = ["Who sailed north?", "Quantum chromodynamics?", "Why was it silent at dawn?"]


@pytest.fixture(scope="module")
def memory(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory of a short text, which stands beside it."""
    out = tmp_path_factory.mktemp("memories") / "book.hmem"
    result("read", "-", "--out", out, "--model", tiny_model, *SMALL, stdin=text_of(120).encode())
    return out


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard streams pass for a terminal."""
    for name in ("is_terminal", "is_conversation"):
        monkeypatch.setattr(f"hiermem.cli.asking.{name}", lambda: True)


def test_json_says_what_was_asked_and_how_long_it_took(tiny_model: Path, memory: Path) -> None:
    asked = result("ask", memory, QUESTIONS[0], "--model", tiny_model, *FEW)
    names = "answer found confidence complete recalled sources first_token_seconds seconds top_k"
    assert list(asked) == names.split() and not asked["recalled"]
    assert list(asked["sources"][0]) == "segment start end score text document page chapter line".split()
    assert 0 < asked["first_token_seconds"] <= asked["seconds"] and asked["top_k"] == LongTermConfig().top_k
    assert result("ask", memory, QUESTIONS[0], "--model", tiny_model, "--top-k", 1, *FEW)["top_k"] == 1
    missing = result("ask", memory, QUESTIONS[1], "--model", tiny_model, *FEW)
    assert (missing["first_token_seconds"], missing["found"], missing["sources"]) == (None, False, [])


def test_an_answer_is_given_where_the_document_does_not_say_if_it_is_wanted(
    tiny_model: Path, memory: Path
) -> None:
    options = (QUESTIONS[1], "--model", tiny_model, *FEW)
    assert result("ask", memory, *options)["answer"] == "The document does not say."
    wanted = result("ask", memory, *options, "--always-answer")
    assert wanted["answer"] != "The document does not say." and wanted["first_token_seconds"] > 0


def test_settings_of_answers_are_taken_and_clashes_refused(tiny_model: Path, memory: Path) -> None:
    options = (QUESTIONS[0], "--model", tiny_model, *FEW)
    whole = result("ask", memory, *options, "--set", "asking.passage_characters=0")["sources"]
    assert len(whole) == LongTermConfig().top_k > len(result("ask", memory, *options)["sources"])
    for words, sentence in (
        (("--set", "asking.passages=kv"), "keeps no keys and values: read the document with the tier kv"),
        (("--set", "asking.passages=keys"), "one of text, kv, not 'keys'"),
        (("--set", "asking.rerank=12", "--rerank", 13), "asking.rerank is set by another option"),
        (("--set", "longterm.top_k=3"), "only settings of longterm.keys, asking would"),
    ):
        assert_refused(run("ask", memory, *options, *words), sentence)


def test_stored_keys_and_values_answer(tiny_model: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "kv.hmem", text_of(120)
    common = ("--model", tiny_model)
    kept = ("--set", "longterm.tiers.kv.keep=1")
    result("read", "-", "--out", out, *common, *SMALL, *kept, stdin=text.encode())
    stored = result("ask", out, QUESTIONS[0], *common, *FEW, "--set", "asking.passages=kv")
    again = result("ask", out, QUESTIONS[0], *common, *FEW)
    assert stored["sources"] == again["sources"] and stored["found"] and stored["answer"]
    model = HierMemModel.from_pretrained(tiny_model)
    model.config.asking = replace(model.config.asking, passages="kv")
    expected = model.ask(MemoryState.load(out, model), QUESTIONS[0], max_new_tokens=8)
    assert stored["answer"] == expected.text


def test_several_questions_are_answered_as_each_alone(tiny_model: Path, memory: Path, tmp_path: Path) -> None:
    file, options = tmp_path / "questions.txt", ("--model", tiny_model, *FEW)
    file.write_text("\n".join([QUESTIONS[1], "", QUESTIONS[2]]) + "\n", "utf-8")
    alone = [result("ask", memory, question, *options) for question in QUESTIONS]
    both = run("ask", memory, *QUESTIONS, *options, "--json")
    more = run("ask", memory, QUESTIONS[0], "--questions", file, *options, "--json")
    for done in (both, more):
        rows = json.loads(done.stdout)
        assert [row.pop("question") for row in rows] == QUESTIONS
        for row, single in zip(rows, alone, strict=True):
            for timed in (row, single):
                timed |= {"seconds": 0, "first_token_seconds": 0}
        assert rows == alone
    file.write_text(QUESTIONS[1], "utf-8")
    assert len(json.loads(run("ask", memory, "--questions", file, *options, "--json").stdout)) == 1
    words = run("ask", memory, *QUESTIONS[:2], *options).stdout.decode()
    assert words.startswith(f"{QUESTIONS[0]}\n→ ")
    assert words.endswith(f"\n\n{QUESTIONS[1]}\n→ The document does not say.\n")


@pytest.mark.usefixtures("typed")
def test_a_terminal_shows_the_same_words_while_they_are_decoded(
    tiny_model: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for question in QUESTIONS:
        written: list[str] = []
        options = (question, "--model", tiny_model, "--max-new-tokens", 20)
        with monkeypatch.context() as patch:
            patch.setattr("hiermem.cli.answers.write", written.append)
            assert run("ask", memory, *options).returncode == 0
            assert len(written) > 4 or "does not say" in written[0]
            patch.setattr("hiermem.cli.asking.is_terminal", lambda: False)
            assert "".join(written) == run("ask", memory, *options).stdout.decode()


@pytest.mark.usefixtures("typed")
def test_a_conversation_goes_on_until_the_input_ends(tiny_model: Path, memory: Path) -> None:
    lines = f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}\n".encode()
    done = run("ask", memory, "--model", tiny_model, *FEW, stdin=lines)
    assert done.returncode == 0, done.stderr.decode()
    first, again, last, end = done.stdout.decode().split("> ")[1:]
    assert first == run("ask", memory, QUESTIONS[0], "--model", tiny_model, *FEW).stdout.decode()
    assert (again, end) == ("", "\n")
    confidence = r"  Confidence that the document holds an answer: 0\.\d\d\.\n"  # with the extra dense
    assert re.fullmatch(rf"→ The document does not say\.\n(?:{confidence})?", last)
    done = run("ask", memory, "--model", tiny_model, stdin=b"caf\xe9?\n")
    assert done.returncode == 2 and b"not in the terminal's encoding" in done.stderr


def test_ctrl_c_stops_an_answer_on_a_line_of_its_own(
    tiny_model: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, typed: None
) -> None:
    from hiermem.answer_stream import AnswerStream

    go_on, pieces = AnswerStream.__next__, iter(range(3))

    def interrupted(stream: AnswerStream) -> str:
        if next(pieces, None) is None:
            raise KeyboardInterrupt
        return go_on(stream)

    monkeypatch.setattr(AnswerStream, "__next__", interrupted)
    done = run("ask", memory, QUESTIONS[0], "--model", tiny_model)
    assert (done.returncode, done.stderr) == (130, b"hiermem: stopped.\n")
    assert done.stdout.startswith("→ ".encode()) and done.stdout.endswith(b"\n")


def test_what_is_no_question_is_refused(memory: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n", "utf-8")
    assert_refused(run("ask", memory), "There is no question: give one")
    assert_refused(run("ask", memory, "Who?", ""), "question is empty")
    for name, why in (("empty.txt", "is empty"), ("missing.txt", "cannot be read")):
        expected = f"The file of questions '{tmp_path / name}' {why}"
        assert_refused(run("ask", memory, "--questions", tmp_path / name), expected)


@pytest.mark.usefixtures("typed")
def test_a_conversation_is_no_json(memory: Path) -> None:
    assert_refused(run("ask", memory, "--json"), "without --json")


def test_a_real_terminal_holds_a_conversation(tiny_model: Path, memory: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hiermem.cli.main", "ask", memory, "--model", tiny_model, *FEW]
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(ours, b"> ")
        os.write(ours, f"{QUESTIONS[0]}\n".encode())
        shown = read_until(ours, b"\n> ")
        assert "→ ".encode() in shown and b"[segment" in shown
        os.write(ours, b"\x04")  # the end of the input
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)


def read_until(terminal: int, end: bytes) -> bytes:
    """What is written to a terminal, up to ``end`` or for a minute."""
    shown = b""
    while not shown.endswith(end):
        assert select.select([terminal], [], [], 60)[0], shown
        shown += os.read(terminal, 1 << 12)
    return shown
