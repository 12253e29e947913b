"""Tasks and scoring against plain arithmetic."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_refused, result, run
from hypothesis import given
from hypothesis import strategies as st
from peers import need
from readers import lively, reader, settings, text_of

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval import ranking
from hiermem.eval.haystack import Haystack
from hiermem.eval.result_log import ResultLog
from hiermem.eval.sampling import stratified
from hiermem.eval.tasks import interleaved, passkey, pg19, pubmedqa, retrieval
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.model import HierMemModel


def book_figures(model: HierMemModel, texts: dict[str, str], **options: Any) -> dict[str, Any]:
    """Results of PG-19 on these books."""
    return pg19.PG19(data=Path("books"), **options).measure(model, texts, ResultLog(None, {}))


def between_books(model: HierMemModel, texts: dict[str, str], segments: int) -> dict[str, Any]:
    """Results of interleaved books."""
    task = interleaved.Interleaved(data=Path("books"), model="tiny", segments=segments)
    return task.measure(model, texts, ResultLog(None, {}))


def test_pg19_scores_each_token_once() -> None:
    model = reader(config=settings(policy="none", positions="absolute"))
    text = text_of(30)[:150]
    ids = model.tokenizer(text, return_tensors="pt").input_ids[:, 5:45]
    with torch.no_grad():
        logits = model.backbone(ids).logits[0].log_softmax(-1)
    expected = -logits[:-1].gather(1, ids[0, 1:, None]).squeeze(1)[10:]
    result = book_figures(model, {"b": text}, start_token=5, max_tokens=40, score_from=10)
    scored = model.tokenizer.decode(ids[0, 11:])
    assert result["n"] == len(expected) == 29
    assert result["metrics"]["perplexity"] == pytest.approx(math.exp(float(expected.mean())), rel=1e-4)
    total = float(expected.sum())
    words = result["metrics"]["word_perplexity"]
    assert words == pytest.approx(math.exp(total / len(scored.split())), rel=1e-4)
    bits = total / math.log(2) / len(scored.encode())
    assert result["metrics"]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.parametrize("residual", [True, False])
def test_recall_between_interleaved_books(residual: bool) -> None:
    """Attention that is blind is spread evenly; a memory of which nothing is projected brings nothing."""
    summary = SummaryConfig(tokens=2, width=8, query="half", residual=residual)
    config = settings(32, 32, policy="forget", update_interval=32, positions="compact")
    model = lively(reader(config=HierMemConfig(**{**config.settings(), "summary": summary})))
    assert model.summary is not None
    for parameter in model.summary.query.parameters():
        torch.nn.init.zeros_(parameter)
    books = {name: text_of(80, seed) for seed, name in enumerate("ab")}
    result = between_books(model, books, 3)
    even = [1 / 2, 1 / 3, 2 / 4, 2 / 5]  # of the segments before the third, fourth, fifth and sixth
    assert result["metrics"]["weight"] == pytest.approx(sum(even) / 4, abs=1e-6)
    assert result["n"] == 4
    apart = abs(result["metrics"]["perplexity"] - result["metrics"]["without_recall"])
    assert apart > 1e-3
    if model.summary.value is not None:
        torch.nn.init.zeros_(model.summary.value.weight)
        metrics = between_books(model, books, 3)["metrics"]
        assert metrics["perplexity"] == pytest.approx(metrics["without_recall"], rel=1e-5)
        torch.nn.init.ones_(model.summary.query.bias)  # what recalls is the same for all: one key wins
        sharp = between_books(model, books, 3)["metrics"]
        assert sharp["right"] in (0, 0.25, 0.5, 0.75, 1)
        assert abs(sharp["weight"] - sum(even) / 4) > 1e-3
    with pytest.raises(InputError, match="lower --segments"):
        between_books(model, books, 300)
    carried = HierMemConfig(**{**settings().settings(), "summary": SummaryConfig(tokens=2)})
    short = HierMemConfig(**{**config.settings(), "summary": replace(summary, last=1)})
    task = interleaved.Interleaved(data=Path(__file__), model="tiny")
    for wrong, sentence in (
        (settings(), "recall nothing"),
        (short, "recall nothing"),
        (carried, "carries a cache"),
    ):
        with pytest.raises(InputError, match=sentence):
            task.configure(wrong)
    with pytest.raises(InputError, match="Two books"):
        task.load(task.configure(model.config))


def test_pg19_means_over_books() -> None:
    model = reader()
    texts = {"a": text_of(100), "b": text_of(120, seed=4)}
    both = book_figures(model, texts)
    single = [book_figures(model, {name: text})["metrics"] for name, text in texts.items()]
    mean = math.sqrt(single[0]["perplexity"] * single[1]["perplexity"])
    assert both["metrics"]["perplexity"] == pytest.approx(mean)


@pytest.mark.parametrize(("window", "overlap"), [(7, 1), (16, 5), (40, 3), (100, 1)])
def test_windows_score_each_token_once_and_know_only_the_overlap(window: int, overlap: int) -> None:
    model = reader(config=settings(8, policy="none", positions="absolute"))
    text = text_of(60)
    ids = model.tokenizer(text, return_tensors="pt").input_ids[:, :60]
    expected = []
    with torch.no_grad():
        for start in range(0, 60, window):
            known = min(overlap, start)
            part = ids[:, start - known : start + window]
            logits = model.backbone(part).logits[0].log_softmax(-1)
            nll = -logits[:-1].gather(1, part[0, 1:, None]).squeeze(1)
            expected.append(nll[max(known - 1, 0) :])
    mean = float(torch.cat(expected).mean())
    result = book_figures(model, {"b": text}, max_tokens=60, window=window, overlap=overlap)
    assert result["n"] == 59
    assert result["metrics"]["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)


def test_passkey_examples_are_reproducible_and_spread() -> None:
    haystack = Haystack(reader().tokenizer, text_of(3000).replace(" and ", ". "))
    made = passkey.documents(haystack, 400, 5, seed=1)
    assert made == passkey.documents(haystack, 400, 5, seed=1)
    assert made != passkey.documents(haystack, 400, 5, seed=2)
    keys = [each.questions[0].answers[0] for each in made]
    places = [
        each.text.index(passkey.SENTENCE.format(key=key)) / len(each.text)
        for each, key in zip(made, keys, strict=True)
    ]
    assert places == sorted(places)
    assert all(abs(place - (i + 0.5) / 5) < 0.15 for i, place in enumerate(places))
    assert len(set(keys)) == 5


@pytest.mark.parametrize(
    ("answer", "right"), [("It is 12345.", True), ("12345", True), ("54321 or 12345", False), ("none", False)]
)
def test_passkey_wants_the_key_first(answer: str, right: bool) -> None:
    assert passkey.is_right(answer, "12345") is right


def write_pubmedqa(folder: Path) -> None:
    topics = ["aspirin", "insulin", "malaria", "asthma", "vitamins", "sleep"]
    items = {
        str(i): {
            "QUESTION": f"Does {topic} matter?",
            "CONTEXTS": [f"We studied {topic} in mice.", "Results were clear."],
            "LONG_ANSWER": f"Yes, {topic} matters.",
            "final_decision": "yes",
        }
        for i, topic in enumerate(topics)
    }
    (folder / "ori_pqal.json").write_text(json.dumps(items))
    (folder / "test_ground_truth.json").write_text(json.dumps({"4": "yes", "1": "no", "2": "yes"}))


def test_retrieval_on_the_official_layout(tmp_path: Path) -> None:
    write_pubmedqa(tmp_path)
    assert [item.id for item in pubmedqa.load(tmp_path, "test")] == ["4", "1", "2"]
    assert [item.id for item in pubmedqa.load(tmp_path, "train")] == ["0", "3", "5"]
    result = ranking.evaluate(
        retrieval.pool_of(pubmedqa.load(tmp_path, "test")), HierMemConfig(), None, ResultLog(None, {})
    )
    assert result["metrics"] == {"recall_at_1": 1.0, "recall_at_5": 1.0} and result["n"] == 3
    assert [row["system"] for row in result["rows"]] == ["bm25", "lexical"]
    with pytest.raises(InputError, match="no split"):
        pubmedqa.load(tmp_path, "validation")


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
def test_a_part_stands_for_the_whole(kinds: list[str], limit: int, seed: int) -> None:
    items = list(enumerate(kinds))
    part = stratified(items, lambda item: item[1], limit, seed)
    assert part == sorted(set(part)) and len(part) == min(limit, len(items))
    assert part == stratified(items, lambda item: item[1], limit, seed)
    for kind in "abc":
        exact = kinds.count(kind) * len(part) / len(items)
        assert abs(sum(item[1] == kind for item in part) - exact) < 1


def test_a_limit_leaves_every_decision_its_share() -> None:
    """PubMedQA's test questions are ordered by their answers: 276 yes, 169 no, 55 maybe."""
    decisions = ["yes"] * 276 + ["no"] * 169 + ["maybe"] * 55
    items = [pubmedqa.Item(str(i), "?", "", "", decision) for i, decision in enumerate(decisions)]
    part = pubmedqa.drawn(items, 100)
    assert Counter(item.decision for item in part) == {"yes": 55, "no": 34, "maybe": 11}
    assert part != pubmedqa.drawn(items, 100, seed=1)
    assert pubmedqa.drawn(items, None) == pubmedqa.drawn(items, 500) == items


def test_results_of_a_part_name_their_seed(tmp_path: Path) -> None:
    write_pubmedqa(tmp_path)
    command = ["eval", "retrieval", "--data", tmp_path, "--out", tmp_path / "out" / "retrieval.json"]
    part = result(*command, "--limit", 2)
    assert part["n"] == 2 and (part["config"]["limit"], part["config"]["seed"]) == (2, 0)
    assert_refused(run(*command, "--limit", 2, "--seed", 1), "other settings")
    assert_refused(run(*command[:-2], "--seed", 1), "give --limit")
    assert "seed" not in result(*command[:-2])["config"]  # results of all questions can be gone on with


SHARED = Path(__file__).parents[2] / "shared" / "data"


def test_retrieval_with_a_trained_part_and_reranking(tmp_path: Path) -> None:
    write_pubmedqa(tmp_path)
    summary = SummaryConfig(tokens=2, width=8, search=6)
    model = lively(reader(config=HierMemConfig(**{**settings().settings(), "summary": summary})))
    items, known = (
        retrieval.pool_of(pubmedqa.load(tmp_path, "test")),
        ["bm25", "lexical", "lexical and trained"],
    )
    whole = ranking.evaluate(items, model.config, model, ResultLog(None, {}))
    assert [row["system"] for row in whole["rows"]] == known
    always = model.config.with_asking(rerank=2, margin=9.0)
    twice = ranking.evaluate(items, always, model, ResultLog(tmp_path / "out.json", {}))
    assert [row["system"] for row in twice["rows"]] == [*known, "lexical and trained, reranked"]
    assert twice["rows"][:3] == whole["rows"]
    other = lively(reader(config=model.config, seed=1))  # which is not asked: all is in the log
    assert ranking.evaluate(items, always, other, ResultLog(tmp_path / "out.json", {})) == twice


def write_document(folder: Path) -> None:
    """Paragraphs, and questions that share no word with theirs but in the last one."""
    paragraphs = ["The feline slept upon the rug.", "Shares fell after rates rose.", "Bread is baked early."]
    asked = [("Cat nap?", 0), ("Stock market crash?", 1), ("Is bread baked?", 2)]
    questions = [{"question": q, "answers": ["x"], "evidence": paragraphs[place]} for q, place in asked]
    (folder / "document.txt").write_text("\n\n".join(paragraphs), "utf-8")
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)), "utf-8")


def test_retrieval_of_paragraphs_by_words_and_by_meaning(tmp_path: Path) -> None:
    need("hybrid")
    write_document(tmp_path)
    command = ["eval", "retrieval", "--data", tmp_path, "--set", 'longterm.keys={"lexical": {}}']
    plain, both = result(*command), result(*command, "--encoder", "minilm")
    assert plain["metrics"] == both["metrics"] and both["rows"][:2] == plain["rows"] and plain["n"] == 3
    found = {row["system"]: row["recall_at_1"] for row in both["rows"]}
    assert list(found) == ["bm25", "lexical", "dense", "bm25 + dense", "lexical + dense"]
    assert found["dense"] == found["bm25 + dense"] == found["lexical + dense"] == 1.0 > found["bm25"]
    assert both["config"]["encoder"] == "minilm" and "encoder" not in plain["config"]
    lines = retrieval.Retrieval.table([both])
    assert lines[0].startswith("| data | ranked by") and " test | dense |" in lines[4]


def test_only_known_paragraphs_are_searched_for(tmp_path: Path) -> None:
    write_document(tmp_path)
    (tmp_path / "questions.jsonl").write_text('{"question": "Who?", "answers": ["x"]}', "utf-8")
    assert_refused(run("eval", "retrieval", "--data", tmp_path), "whose paragraph is known")
    (tmp_path / "sub").mkdir()
    write_pubmedqa(tmp_path / "sub")
    assert_refused(run("eval", "retrieval", "--data", tmp_path / "sub", "--language", "de"), "English alone")


def test_reranking_decides_which_text_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pubmedqa(tmp_path)
    items = retrieval.pool_of(pubmedqa.load(tmp_path, "test"))
    model = reader(config=settings().with_asking(rerank=3, margin=9.0))
    monkeypatch.setattr(ranking, "reranked", lambda _, hits, __: hits[::-1])
    rows = ranking.evaluate(items, model.config, model, ResultLog(None, {}))["rows"]
    assert [row["recall_at_1"] for row in rows[1:]] == [1.0, 0.0]
    assert rows[2]["recall_at_5"] == 1.0


def test_more_than_are_counted_may_be_reranked(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"fever {'other ' * n}" for n in range(7)]  # found in this order, whatever is asked
    items = retrieval.pool_of(pubmedqa.Item(str(n), "fever", t, "", "yes") for n, t in enumerate(texts))
    model = reader(config=settings().with_asking(rerank=7, margin=9.0))
    monkeypatch.setattr(ranking, "reranked", lambda _, hits, __: hits[::-1])
    plain, again = ranking.evaluate(items, model.config, model, ResultLog(None, {}))["rows"][1:]
    assert plain["recall_at_5"] == again["recall_at_5"] == pytest.approx(5 / 7)
    assert plain["recall_at_1"] == again["recall_at_1"] == pytest.approx(1 / 7)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_retrieval_on_pubmedqa() -> None:
    result = ranking.evaluate(
        retrieval.pool_of(pubmedqa.drawn(pubmedqa.load(SHARED / "pubmedqa", "test"), 300)),
        HierMemConfig(),
        None,
        ResultLog(None, {}),
    )
    assert result["n"] == 300
    assert result["metrics"]["recall_at_1"] >= 0.90
