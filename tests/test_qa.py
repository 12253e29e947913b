"""Questions about long documents: their data, their scores, and summaries of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, result, run

from hiermem.errors import InputError
from hiermem.eval.answer_match import contains, exact_match, normalised, token_f1
from hiermem.eval.answering import Response
from hiermem.eval.metrics import bootstrap, bootstrap_groups
from hiermem.eval.qa_data import Pool, load_pool, load_pools
from hiermem.eval.summary_data import load_documents
from hiermem.eval.tasks.documents import Document, Question, evidence_alone
from hiermem.eval.tasks.qa import QuestionAnswering
from hiermem.passages import Source

SMALL = ("--budget", 24, "--chunk", 16, "--segment", 32)


# ---- scores


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("The  Cat, a 'dog' & an ox!", "en", "cat dog ox"),
        ("Theatre: another", "en", "theatre another"),  # articles are words
        ("1901–1902", "en", "1901–1902"),  # SQuAD's script knows ASCII's punctuation only
        ("1901–1902", "de", "19011902"),
        ("Der Rhein, die «Ruhr»", "de", "rhein ruhr"),
        ("¿El río?", "es", "río"),
        ("Он сказал: «Да»", "ru", "он сказал да"),
        ("以 24 次拦截NFL领先。", "zh", "以 24 次 拦 截 nfl 领 先"),
        ("الكتاب، كبير", "ar", "كتاب كبير"),
    ],
)
def test_normalisation_is_that_of_the_official_scripts(text: str, language: str, expected: str) -> None:
    assert normalised(text, language) == expected


def test_scores_of_an_answer_by_hand() -> None:
    right = ("Wilhelm Conrad Röntgen", "Röntgen")
    assert exact_match("the röntgen.", right) and not exact_match("Wilhelm Röntgen", right)
    assert token_f1("Wilhelm Röntgen", right) == pytest.approx(2 * 2 / (2 + 3))
    assert token_f1("It was Röntgen Röntgen", right) == pytest.approx(2 * 1 / (4 + 1))  # a token counts once
    assert token_f1("nobody", right) == token_f1("", right) == 0
    assert contains("In 1901 it went to Röntgen, of Germany.", right)
    assert not contains("19011", ("1901",)) and not contains("anything", ("the",))
    assert token_f1("领先", ("领导",), "zh") == 0.5 and contains("他领先了", ("领先",), "zh")


def test_an_interval_of_groups_resamples_groups() -> None:
    values = [0.0, 1.0, 0.25, 1.0]
    assert bootstrap_groups([[value] for value in values]) == bootstrap(values)
    assert bootstrap_groups([[0.0, 1.0]]) == (0.5, 0.5)
    assert bootstrap_groups([[0.0] * 9, [1.0]]) == (0.0, 1.0)


# ---- data


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


WORDS = ("zinc", "tea", "ice", "iron", "sleep", "salt", "wine", "gold")


def nq_row(word: str) -> dict[str, Any]:
    return {
        "question": f"who sold {word}",
        "answers": [f"old {word} trader"],
        "ctxs": [{"text": f"At dawn the old {word} trader sold {word} to all.", "isgold": True}],
    }


@pytest.fixture
def nq(tmp_path: Path) -> Path:
    rows = [nq_row(word) for word in WORDS]
    rows.append({**rows[0], "question": "what else"})  # of a paragraph that is there already
    write_lines(tmp_path / "nq" / "test.jsonl", rows)
    return tmp_path / "nq"


def write_xquad(folder: Path, language: str, words: str, ids: str = "abc") -> None:
    folder.mkdir(exist_ok=True)
    paragraphs = [
        {
            "context": f"{words} {place} {language} ",
            "qas": [
                {"id": key, "question": f"{language} {key}?", "answers": [{"text": f"{place} {language}"}]}
            ],
        }
        for place, key in enumerate(ids)
    ]
    content = {"data": [{"paragraphs": paragraphs[:1]}, {"paragraphs": paragraphs[1:]}]}
    (folder / f"{language}.test.json").write_text(json.dumps(content), "utf-8")


@pytest.fixture
def xquad(tmp_path: Path) -> Path:
    write_xquad(tmp_path / "xquad", "en", "The river")
    write_xquad(tmp_path / "xquad", "de", "Der Fluss")
    return tmp_path / "xquad"


PAIRS = [["k1", "v1"], ["k2", "v2"], ["k3", "v3"]]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"ordered_kv_records": PAIRS, "key": key, "value": value} for key, value in PAIRS]
    write_lines(tmp_path / "kv" / "test.jsonl", rows)
    return tmp_path / "kv"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    rows = [
        {"question": "who sailed?", "answers": ["Orion"], "evidence": "called Orion sailed"},
        {"question": "what sank?", "answers": []},
    ]
    write_lines(tmp_path / "own" / "questions.jsonl", rows)
    text = "At dawn ice closed in.\n \n\nThe ship called\nOrion sailed north.\n"
    (tmp_path / "own" / "document.txt").write_text(text, "utf-8")
    return tmp_path / "own"


def spans_of(pool: Pool) -> list[list[str]]:
    return [[pool.text[start:end] for start, end in pool.evidence(each)] for each in pool.questions]


def test_natural_questions_are_one_document_in_a_seeded_order(nq: Path) -> None:
    pool = load_pool(nq, "test")
    assert len(pool.paragraphs) == len(WORDS) and len(pool.questions) == len(WORDS) + 1
    assert pool.text == "\n\n".join(pool.paragraphs)
    quoted = [nq_row(word)["ctxs"][0]["text"] for word in (*WORDS, WORDS[0])]
    assert spans_of(pool) == [[text] for text in quoted]
    assert load_pool(nq) == pool != load_pool(nq, seed=1)
    assert sorted(load_pool(nq, seed=1).paragraphs) == sorted(pool.paragraphs) == sorted(set(quoted))
    few = load_pool(nq, limit=3, seed=1)
    assert few.paragraphs == load_pool(nq, seed=1).paragraphs and len(few.questions) == 3
    assert few == load_pool(nq, limit=3, seed=1)
    assert few.questions != load_pool(nq, limit=3, seed=2).questions


def test_xquad_is_asked_in_one_language_or_crossed(xquad: Path) -> None:
    for document, words in ((None, "The river 0 en"), ("de", "Der Fluss 0 de")):
        pool = load_pool(xquad, language="en", document_language=document)
        assert [question.text for question in pool.questions] == ["en a?", "en b?", "en c?"]
        assert spans_of(pool)[0] == [words] and pool.questions[0].answers == (words[-4:],)
        assert len(pool.paragraphs) == 3


def test_xquad_comes_from_the_hub_in_one_language_or_crossed(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str, split: str, convert: Callable[[Any], Any], subset: str) -> list[Any]:
        assert (name, split) == ("google/xquad", "validation")
        words = subset.removeprefix("xquad.")
        raw = {"id": "1", "context": f"In {words} ", "question": f"{words}?", "answers": {"text": [words]}}
        return [convert(raw), convert({**raw, "id": "2"})]

    monkeypatch.setattr("hiermem.eval.hub.rows", rows)
    pool = load_pool(Path("google/xquad"), language="en", document_language="ru")
    assert pool.paragraphs == ["In ru"] and [each.text for each in pool.questions] == ["en?", "en?"]
    assert pool.questions[0].answers == ("ru",) and spans_of(pool) == [["In ru"], ["In ru"]]


def test_key_value_pairs_are_json_documents(pairs: Path) -> None:
    pools = load_pools(pairs)
    assert pools[0].text == '{"k1": "v1",\n "k2": "v2",\n "k3": "v3"}'
    assert all(json.loads(pool.text) == dict(PAIRS) for pool in pools)
    assert [span for pool in pools for (span,) in spans_of(pool)] == pools[0].paragraphs
    assert [pool.questions[0].answers for pool in pools] == [("v1",), ("v2",), ("v3",)]
    assert '"k2"' in pools[1].questions[0].text
    assert len(load_pools(pairs, limit=2)) == 2
    with pytest.raises(InputError, match="one document for each question"):
        load_pool(pairs)


def test_ones_own_document_is_read_in_its_order_and_quoted(own: Path) -> None:
    pool = load_pool(own)
    assert pool.text == "At dawn ice closed in.\n\nThe ship called\nOrion sailed north."
    assert spans_of(pool) == [["called\nOrion sailed"], []]
    assert pool.questions[1].answers == ()


def test_half_of_the_paragraphs_leave_their_questions_without_answers(nq: Path) -> None:
    whole, (half,) = load_pool(nq, seed=3), load_pools(nq, seed=3, halved=True)
    assert half.paragraphs == whole.paragraphs[:4]
    for before, after in zip(whole.questions, half.questions, strict=True):
        kept = before.paragraph is not None and before.paragraph < 4
        assert after.answers == (before.answers if kept else ()) and bool(half.evidence(after)) == kept
    (few,) = load_pools(nq, limit=4, seed=3, halved=True)
    assert sum(bool(question.answers) for question in few.questions) == 2


def test_summaries_of_few_documents(tmp_path: Path) -> None:
    meeting = {
        "meeting_transcripts": [{"speaker": "A", "content": " Hello. "}, {"speaker": "B", "content": ""}],
        "general_query_list": [{"query": "Summarise.", "answer": "They met."}],
        "specific_query_list": [{"query": "Who spoke?", "answer": "A."}],
    }
    write_lines(tmp_path / "test.jsonl", [meeting] * 3)
    found = load_documents(tmp_path, "test", None, 0)
    assert [each.text for each in found] == ["A: Hello.\nB: "[:-1]] * 3
    assert found[0].questions == (("Summarise.", ("They met.",)), ("Who spoke?", ("A.",)))
    few = load_documents(tmp_path, "test", 3, 1)
    assert [len(each.questions) for each in few] == [2, 1] and few == load_documents(tmp_path, "test", 3, 1)
    assert {load_documents(tmp_path, "test", 1, seed)[0].key for seed in range(20)} == {"1", "2", "3"}
    questions = [{"question_text": "Why?", "responses": [{"response_text": "So."}, {"response_text": "Ah."}]}]
    write_lines(tmp_path / "validation.jsonl", [{"document": "A story.", "questions": questions}])
    assert load_documents(tmp_path, "validation", None, 0)[0].questions == (("Why?", ("So.", "Ah.")),)


def odd(change: dict[str, Any]) -> Callable[[dict[str, Path]], None]:
    """Natural Questions with one more row, changed."""

    def write(folders: dict[str, Path]) -> None:
        write_lines(folders["NQ"] / "test.jsonl", [nq_row("zinc"), {**nq_row("tea"), **change}])

    return write


def own_row(row: Any) -> Callable[[dict[str, Path]], None]:
    """One's own document with one question."""
    return lambda folders: write_lines(folders["OWN"] / "questions.jsonl", [row])


def text_in(folder: str, name: str, text: str) -> Callable[[dict[str, Path]], None]:
    def write(folders: dict[str, Path]) -> None:
        (folders[folder] / name).write_text(text, "utf-8")

    return write


def nothing(_: dict[str, Path]) -> None:
    """Data as they are."""


OWN_QUESTION = {"question": "who?", "answers": ["Orion"]}


@pytest.mark.parametrize(
    ("prepare", "arguments", "expected"),
    [
        (nothing, ["qa", "--data", "missing"], "no folder missing"),
        (nothing, ["qa", "--data", "EMPTY"], "no questions of the split 'test'"),
        (nothing, ["qa", "--data", "NQ", "--split", "train"], "no split 'train': choose one of test"),
        (nothing, ["qa", "--data", "NQ", "--language", "de"], "there is no 'de' of it"),
        (nothing, ["qa", "--data", "NQ", "--document-language", "de"], "there is no 'de' of it"),
        (nothing, ["qa", "--data", "NQ", "--method", "magic"], "no method 'magic'"),
        (nothing, ["qa", "--data", "NQ", "--limit", "0"], "'--limit'"),
        (nothing, ["qa", "--data", "XQUAD", "--language", "fr"], "choose one of de, en"),
        (nothing, ["qa", "--data", "XQUAD", "--split", "train"], "choose one of test"),
        (nothing, ["qa", "--data", "KV", "--abstain"], "there are no halves"),
        (nothing, ["qa", "--data", "OWN", "--split", "test"], "leave --split out"),
        (nothing, ["qa", "--data", "OWN", "--document-language", "de"], "leave --document-language out"),
        (nothing, ["qa", "--data", "OWN", "--abstain"], "give the evidence of every question"),
        (nothing, ["qa", "--data", "someone/questions"], "cannot be read from the hub"),
        (odd({"answers": []}), ["qa", "--data", "NQ"], "line 2: a question needs answers"),
        (odd({"answers": "tea"}), ["qa", "--data", "NQ"], "line 2: answers must be a list"),
        (odd({"question": " "}), ["qa", "--data", "NQ"], "line 2: question must be a text"),
        (odd({"ctxs": [{"text": "No."}]}), ["qa", "--data", "NQ"], "no 'isgold' in line 2"),
        (odd({"ctxs": "No."}), ["qa", "--data", "NQ"], "line 2: ctxs must be a list"),
        (odd({"ctxs": [{"text": "No.", "isgold": False}]}), ["qa", "--data", "NQ"], "that isgold"),
        (text_in("NQ", "test.jsonl", "{"), ["qa", "--data", "NQ"], "as lines of JSON"),
        (text_in("NQ", "test.jsonl", "[]\n"), ["qa", "--data", "NQ"], "no JSON object in line 1"),
        (text_in("NQ", "test.jsonl", ""), ["qa", "--data", "NQ"], "neither Natural Questions"),
        (text_in("XQUAD", "en.test.json", "{}"), ["qa", "--data", "XQUAD"], "not in the layout of SQuAD"),
        (text_in("XQUAD", "en.test.json", "?"), ["qa", "--data", "XQUAD"], "cannot be read as JSON"),
        (text_in("XQUAD", "en.test.json", '{"data": []}'), ["qa", "--data", "XQUAD"], "holds no questions"),
        (
            lambda folders: write_xquad(folders["XQUAD"], "de", "Der Fluss", "abd"),
            ["qa", "--data", "XQUAD", "--document-language", "de"],
            "do not have the same questions",
        ),
        (
            lambda folders: write_xquad(folders["XQUAD"], "en", "The river", "aab"),
            ["qa", "--data", "XQUAD"],
            "two questions of one id",
        ),
        (
            lambda folders: write_lines(
                folders["KV"] / "test.jsonl", [{"ordered_kv_records": PAIRS, "key": "k1", "value": "v2"}]
            ),
            ["qa", "--data", "KV"],
            "one of them the key",
        ),
        (own_row({**OWN_QUESTION, "evidence": "Argo"}), ["qa", "--data", "OWN"], "stands 0 times"),
        (own_row({**OWN_QUESTION, "evidence": "o"}), ["qa", "--data", "OWN"], "times within"),
        (own_row({**OWN_QUESTION, "page": 3}), ["qa", "--data", "OWN"], "a question has no 'page'"),
        (own_row({"question": "who?"}), ["qa", "--data", "OWN"], "no 'answers' in line 1"),
        (own_row(OWN_QUESTION), ["qa", "--data", "OWN", "--method", "right"], "names no evidence"),
        (text_in("OWN", "document.txt", " \n"), ["qa", "--data", "OWN"], "is blank"),
        (lambda folders: (folders["OWN"] / "document.txt").unlink(), ["qa", "--data", "OWN"], "UTF-8 text"),
        (nothing, ["summary", "--data", "NQ"], "neither meetings of QMSum"),
        (nothing, ["summary", "--data", "missing"], "no folder missing"),
        (nothing, ["summary", "--data", "EMPTY"], "has no split 'test'"),
        (nothing, ["qa", "--data", "STORIES"], "neither Natural Questions"),
        (
            text_in("STORIES", "test.jsonl", '{"document": "A story.", "questions": []}\n'),
            ["summary", "--data", "STORIES"],
            "line 1: a document needs questions",
        ),
    ],
)
def test_odd_data_get_one_sentence(
    prepare: Callable[[dict[str, Path]], None],
    arguments: list[str],
    expected: str,
    nq: Path,
    xquad: Path,
    pairs: Path,
    own: Path,
    stories: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    folders = {"NQ": nq, "XQUAD": xquad, "KV": pairs, "OWN": own, "STORIES": stories}
    folders["EMPTY"] = tmp_path / "empty"
    prepare(folders)
    given = [folders.get(argument, argument) for argument in arguments]
    assert_refused(run("eval", *given, "--model", tiny_model), expected)


# ---- the task


def response(text: str, places: Sequence[tuple[int, int]], document: str, found: bool = True) -> Response:
    sources = [Source(0, start, end, 1.0, document[start:end]) for start, end in places]
    return Response(text, sources, found, 1, 1, 0.0)


def test_recall_is_of_the_first_sources_that_overlap_the_gold_paragraph() -> None:
    text = "aa bb cc dd ee ff gold gg"
    gold = (text.index("gold"), text.index("gold") + 4)
    question = Question(key="1", text="what?", answers=("gold",), evidence=(gold,))
    task = QuestionAnswering(data=Path("nq"))
    others = [(place, place + 2) for place in range(0, 18, 3)]
    beside, across = (gold[0] - 3, gold[0]), (gold[0] - 3, gold[0] + 1)
    for places, at_1, at_5 in (
        ([gold], True, True),
        ([beside, across], False, True),
        ([*others[:4], gold], False, True),
        ([*others[:5], gold], False, False),
        ([], False, False),
    ):
        row = task.scores(question, response("It is gold.", places, text))
        assert (row["recall_at_1"], row["recall_at_5"]) == (at_1, at_5)
        assert row["source_holds_answer"] == (gold in places)
        assert row["contains"] and not row["exact_match"] and row["f1"] == 0.5
        assert row["shown"] == [text[start:end] for start, end in places]
    unknown = Question(key="2", text="what?", answers=("gold",))
    assert task.scores(unknown, response("gold", [gold], text))["recall_at_1"] is None


def scored(task: QuestionAnswering, answers: str, found: str, shown: str = "") -> list[dict[str, Any]]:
    """Rows of questions with (1) and without (0) an answer, found (1) or not (0)."""
    rows = []
    for answer, is_found in zip(answers, found, strict=True):
        question = Question(key="", text="", answers=("gold",) * int(answer))
        rows.append(
            {**task.scores(question, response("gold", [], "", found=is_found == "1")), "shown": shown}
        )
    return rows


def test_precision_and_recall_of_what_is_found() -> None:
    task = QuestionAnswering(data=Path("nq"), abstain=True, method="bm25")
    metrics = task.result(scored(task, "11110000", "11101000", "x"))["metrics"]
    assert metrics["found_precision"] == 3 / 4 and metrics["found_recall"] == 3 / 4
    assert metrics["found_wrongly"] == 1 / 4 and metrics["exact_match"] == 1.0
    none = task.result(scored(task, "10", "00"))["metrics"]
    assert "found_precision" not in none and none["found_recall"] == none["found_wrongly"] == 0
    assert "found_wrongly" not in task.result(scored(task, "11", "11"))["metrics"]
    assert task.result(scored(task, "00", "01"))["metrics"] == {"found_precision": 0.0, "found_wrongly": 0.5}


def test_a_method_without_sources_has_no_recall() -> None:
    rows = scored(QuestionAnswering(data=Path("nq")), "1", "1")
    for row in rows:
        row |= {"recall_at_1": False, "recall_at_5": False}
    for method, has in (("hiermem", True), ("closed", False)):
        found = QuestionAnswering(data=Path("nq"), method=method).result(rows)["metrics"]
        assert ("recall_at_1" in found) == ("source_holds_answer" in found) == has


def test_evidence_stands_alone_for_the_right_method() -> None:
    question = Question(key="1", text="what?", answers=("b",), evidence=((2, 3), (4, 6)))
    (alone,) = evidence_alone(Document("a b cd", [question]))
    assert alone.text == "b\n\ncd" and alone.questions[0].evidence == ((0, 5),)


@pytest.mark.parametrize("method", ["hiermem", "bm25", "right", "closed"])
def test_metrics_are_those_of_the_rows(method: str, nq: Path, tiny_model: Path) -> None:
    if method == "bm25":
        pytest.importorskip("rank_bm25")
    small = SMALL if method == "hiermem" else ()
    report = result(
        *("eval", "qa", "--data", nq, "--model", tiny_model, "--method", method, "--limit", 2, *small)
    )
    rows = report["examples"]
    assert report["n"] == len(rows) == 2
    assert {row["question"] for row in rows} <= {nq_row(word)["question"] for word in WORDS} | {"what else"}
    for name in ("exact_match", "f1", "contains", "found"):
        assert report["metrics"][name] == sum(row[name] for row in rows) / 2
        assert len(report["intervals"][name]) == 2
    assert ("recall_at_1" in report["metrics"]) == (method in ("hiermem", "bm25"))
    config = report["config"]
    assert (config["dataset"], config["split"], config["system"]) == ("nq", "test", method)
    assert (config["language"], config["document_language"], config["seed"]) == ("en", "en", 0)


def test_questions_of_the_other_half_are_asked_too(own: Path, nq: Path, tiny_model: Path) -> None:
    pytest.importorskip("rank_bm25")
    common = ("--model", tiny_model, "--method", "bm25")
    report = result("eval", "qa", "--data", nq, "--abstain", "--limit", 4, *common)
    assert [len(row["answers"]) for row in report["examples"]].count(0) == 2
    assert report["metrics"]["found_precision"] == 0.5 and report["metrics"]["found_wrongly"] == 1.0
    mine = result("eval", "qa", "--data", own, *common)  # one of its questions has no answer
    assert mine["n"] == 2 and mine["metrics"]["found_precision"] == 0.5


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    questions = [
        {
            "question_text": f"Who {word}?",
            "responses": [{"response_text": "the captain"}, {"response_text": word}],
        }
        for word in ("sailed", "sang")
    ]
    story = {"document": "The captain sailed north. Old men sang songs.", "questions": questions}
    write_lines(tmp_path / "stories" / "test.jsonl", [story, story])
    return tmp_path / "stories"


def test_summaries_are_scored_against_the_reference_that_fits_best(
    stories: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rouge_score")
    from hiermem.eval.tasks.summary import Summary

    question = Question(key="1", text="?", answers=("a dog barked", "the cats sat down"))
    row = Summary(data=stories).scores(question, response("The cat sat", [], ""))
    assert row["rouge1"] == row["rougeL"] == pytest.approx(2 * 3 / (3 + 4))  # words are stemmed
    assert row["rouge2"] == pytest.approx(2 * 2 / (2 + 3))
    monkeypatch.setattr(Summary, "max_new_tokens", 8)
    report = result("eval", "summary", "--data", stories, "--model", tiny_model, "--limit", 3, *SMALL)
    assert report["n"] == 3 and {row["document"] for row in report["examples"]} == {"1", "2"}
    for name in ("rouge1", "rouge2", "rougeL"):
        assert report["metrics"][name] == pytest.approx(sum(row[name] for row in report["examples"]) / 3)
    assert report["intervals"].keys() == report["metrics"].keys()
    alone = Summary(data=stories).result([row for row in report["examples"] if row["document"] == "1"])
    assert alone["metrics"] and not alone["intervals"]  # one document tells of no other


def test_a_run_that_was_stopped_goes_on(
    nq: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("eval", "qa", "--data", nq, "--model", tiny_model, "--limit", 4, *SMALL)
    whole, real, asked = result(*command), QuestionAnswering.answer, []

    def answer(self: QuestionAnswering, *arguments: Any) -> dict[str, Any]:
        asked.append(1)
        if len(asked) == 3:
            raise InputError("The lamp went out.")
        return real(self, *arguments)

    monkeypatch.setattr(QuestionAnswering, "answer", answer)
    out = tmp_path / "qa.json"
    assert_refused(run(*command, "--out", out), "The lamp went out")
    report = result(*command, "--out", out)
    assert len(asked) == 5
    clocks = ("first_token_seconds",)
    for there, here in zip(whole["examples"], report["examples"], strict=True):
        assert all(there[name] == here[name] for name in there if name not in clocks)
    assert report["metrics"] == whole["metrics"] and report["intervals"] == whole["intervals"]
    page = Path(result("report", tmp_path, "--page", tmp_path / "page.md")["written"][0]).read_text("utf-8")
    assert ", split test, language en, limit 4, seed 0\n\n| method | contains | exact match |" in page
    assert f"### {tiny_model.name}, nq, " in page
