"""Tasks, metrics and peers: what is asked, how it is scored, what each system shows the backbone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import method_around, need
from readers import lively, reader, settings, text_of, uneven

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.haystack import Haystack, hidden
from hiermem.eval.methods import (
    METHODS,
    Bm25,
    Compressed,
    Full,
    InContext,
    PrefilledContext,
    Pruned,
    Truncated,
    check_method,
    new_method,
)
from hiermem.eval.metrics import bootstrap, macro_f1
from hiermem.eval.result_log import ResultLog
from hiermem.eval.scoring import prefill, score_answer, score_options
from hiermem.eval.tasks import mqar, needles, pubmedqa
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.model import HierMemModel
from hiermem.prompts import prompt_text

WIDE = settings(budget=512, update_interval=16, positions="absolute", policy="none")


def wide() -> HierMemModel:
    """A model that was trained on more positions than any prompt here takes."""
    model = reader(config=WIDE)
    model.adapter.trained_range = 4096
    return model


# ---- metrics


def test_macro_f1_is_the_mean_over_labels() -> None:
    given, wanted = ["yes", "yes", "no", "no"], ["yes", "no", "no", "maybe"]
    assert macro_f1(given, wanted, ("yes", "no", "maybe")) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_bootstrap_narrows_with_more_values() -> None:
    few, many = bootstrap([0.0, 1.0] * 10), bootstrap([0.0, 1.0] * 1000)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert bootstrap([0.0, 1.0] * 10) == few


# ---- scores


def test_answers_are_scored_as_the_model_reads_them() -> None:
    model = wide()
    memory = model.read(text_of(60))
    prompt, answer, lead = model.prepare(memory, "Who sailed?"), " the captain", " It was"
    ids = model.tokenizer(lead + answer, add_special_tokens=False).input_ids
    count = len(model.tokenizer(answer, add_special_tokens=False).input_ids)
    whole = torch.cat((prompt.ids, torch.tensor([ids])), dim=1)
    with torch.no_grad():
        logits = model.backbone(whole).logits[0, -count - 1 : -1].log_softmax(-1)
        score = score_answer(model.reader, prompt.fork(), answer, lead)
        again = score_answer(model.reader, prefill(model.reader, prompt.fork()), answer, lead)
    expected = -logits.gather(1, whole[0, -count:, None]).squeeze(1)
    torch.testing.assert_close(score.nll, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(score.nll, again.nll, atol=1e-4, rtol=1e-4)
    assert score.exact == bool((logits.argmax(-1) == whole[0, -count:]).all())


def test_options_are_scored_like_answers() -> None:
    model = wide()
    prompt = model.prepare(model.read(text_of(60)), "Who sailed?")
    options = ("no", "Orion", "a cat")
    with torch.no_grad():
        scores = score_options(model.reader, prompt.fork(), options)
        singly = [-float(score_answer(model.reader, prompt.fork(), option).nll.sum()) for option in options]
    assert scores == pytest.approx(singly, rel=1e-4)


# ---- methods


@pytest.mark.parametrize("name", METHODS)
@torch.inference_mode()
def test_a_question_leaves_no_trace(name: str) -> None:
    model, text = wide(), text_of(120)
    if name == Compressed.name:
        model.config = model.config.with_working(policy="window")
    system = method_around(model, name)
    context = system.read(text)
    first = system.prompt(context, "Who sailed north?")
    before = score_answer(system.model.reader, first.fork(), " the captain").nll
    score_answer(system.model.reader, system.prompt(context, "Who fell silent?"), " wind")
    again = system.prompt(context, "Who sailed north?")
    assert torch.equal(score_answer(system.model.reader, again, " the captain").nll, before)


@torch.inference_mode()
def test_full_attention_reads_the_whole_prompt() -> None:
    model, text = wide(), text_of(100).strip()
    system = Full(model)
    score = score_answer(model.reader, system.prompt(system.read(text), "Who?"), " nobody").nll
    whole = prompt_text(model.tokenizer, [text], "Who?", model.config.asking.instruction)
    before, after = str(whole).split(text)
    ids = [model.reader.encode(part) for part in (before + text, after, " nobody")]
    logits = model.backbone(torch.cat(ids, dim=1)).logits[0, -ids[2].shape[1] - 1 : -1].log_softmax(-1)
    expected = -logits.gather(1, ids[2][0, :, None]).squeeze(1)
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)


def test_full_attention_refuses_what_does_not_fit_and_truncation_cuts_it() -> None:
    model, text = reader(config=WIDE), text_of(1200)
    model.adapter.trained_range = Truncated.room + 40
    with pytest.raises(InputError, match="does not fit"):
        Full(model).read(text)
    kept = Truncated(model).read(text).working.num_tokens[0]
    assert 40 <= kept <= Truncated.room + 40


def test_pruning_keeps_the_budget_before_the_question() -> None:
    model = reader(config=settings(policy="window", budget=24, update_interval=16))
    assert InContext(model).read(text_of(100)).working.cache.tokens > 24
    assert Pruned(model).read(text_of(100)).working.cache.tokens == 24


def test_what_is_pruned_hands_on_a_trained_memory() -> None:
    config = HierMemConfig(**{**settings().settings(), "summary": SummaryConfig(tokens=2, width=8)})
    model = lively(reader(config=config))
    with torch.inference_mode():
        left = Pruned(model).read(text_of(100)).working
        assert left.recurrence is not None
        assert len(left.recurrence.memory_embeddings[0]) == left.num_tokens[0] // config.segment > 1
        assert InContext(model).read(text_of(100)).working.recurrence is None


@torch.inference_mode()
def test_compression_decides_once_after_all_was_read() -> None:
    model, text, keep = wide(), text_of(100), 0.4
    shares = uneven(model)
    model.config = settings(policy="window", head_shares=shares, update_interval=16)
    compressed, whole = Compressed(model, keep).read(text).working, Full(model).read(text).working
    assert keep - 0.05 < compressed.cache.mean_tokens / compressed.num_tokens[0] <= keep
    for part, memory in zip(compressed.cache.head_groups, compressed.caches, strict=True):
        values, kept = whole.caches[part.layer].values, memory.positions
        assert values is not None and kept is not None and memory.tokens < whole.num_tokens[0]
        index = kept.unsqueeze(-1).expand(*kept.shape, values.shape[-1])
        expected = values[:, part.heads].gather(2, index)
        torch.testing.assert_close(memory.values, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="give --keep"):
        new_method("compressed", model)
    for wrong in ({"policy": "none"}, {"positions": "compact"}):
        with pytest.raises(InputError, match="scores tokens where they stand"):
            Compressed.check(model.config.with_working(**wrong), {"keep": keep})


def test_bm25_shows_the_passage_with_the_words() -> None:
    need("bm25")
    model = wide()
    text = text_of(900) + " The brass key hangs behind the clock. " + text_of(900, seed=1)
    system = Bm25(model)
    prompt = system.prompt(system.read(text), "Where hangs the brass key?")
    assert "behind the clock" in model.tokenizer.decode(prompt.ids[0])
    assert prompt.ids.shape[1] < 6 * system.passage_tokens


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="choose one of hiermem"):
        new_method("magic", wide())
    with pytest.raises(InputError, match="choose one of hiermem"):
        check_method("magic", tuple(METHODS))


# ---- haystacks and needles


def test_hidden_sentences_stand_between_sentences_in_order() -> None:
    text = "One two. Three four! Five six? " * 20
    made = hidden(text, ["First.", "Second.", "Third."], [0.1, 0.5, 0.9])
    assert made.replace("First. ", "").replace("Second. ", "").replace("Third. ", "") == text
    places = [made.index(word) / len(made) for word in ("First.", "Second.", "Third.")]
    assert places == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def haystack(words: int = 2500) -> Haystack:
    return Haystack(reader().tokenizer, text_of(words).replace(" and ", ". "))


def test_needles_are_reproducible_and_asked_evenly() -> None:
    made = needles.examples([haystack()], 400, 40, seed=3)
    assert made == needles.examples([haystack()], 400, 40, seed=3)
    for example in made:
        codes = re.findall(r"The code of \w+ (\d) is (\d{5})\.", example.text)
        assert [number for number, _ in codes] == ["1", "2", "3", "4"]
        asked = re.findall(r"\d", example.question)[0]
        assert dict(codes)[asked] == example.answer.strip()
    assert {re.findall(r"\d", example.question)[0] for example in made} == set("1234")


def test_dumped_needles_are_the_prompts_that_are_scored(tmp_path: Path) -> None:
    model, made = wide(), needles.examples([haystack()], 200, 3, seed=1)
    task = needles.Needles(data=Path("books"), length=200, limit=3, seed=1, dump=tmp_path / "prompts.jsonl")
    assert task.export(model, {"book": haystack().text}) == 3
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text("utf-8").splitlines()]
    instruction = model.config.asking.instruction
    for row, example in zip(rows, made, strict=True):
        whole = prompt_text(model.tokenizer, [example.text], example.question, instruction)
        assert row["context"] + row["question"] == str(whole) + example.lead
        assert row["context"].endswith(example.text)
        assert row["answer"] == example.answer


@torch.inference_mode()
def test_needles_keep_their_share() -> None:
    model = reader(config=settings(policy="window", budget=50, update_interval=16))
    task = needles.Needles(data=Path("books"), keep=0.2, length=200, limit=3, seed=1)
    result = task.measure(model, {"book": haystack().text}, ResultLog(None, {}))
    assert result["metrics"]["kept"] == pytest.approx(0.2, abs=0.01)
    assert result["metrics"]["nll"] == pytest.approx(sum(row["nll"] for row in result["examples"]) / 3)


# ---- PubMedQA


def items() -> list[pubmedqa.Item]:
    return [
        pubmedqa.Item(str(i), f"Does {t} help?", f"{text_of(30, i)} {t} helped.", f"{t} helps.", d)
        for i, (t, d) in enumerate(
            zip(("zinc", "tea", "ice", "iron", "sleep"), ["yes", "no", "maybe", "yes", "no"], strict=True)
        )
    ]


def test_fused_spans_quote_the_abstracts() -> None:
    made = pubmedqa.fused(items())
    assert [made.text[a:b].strip() for a, b in made.spans] == [item.abstract.strip() for item in items()]


@pytest.mark.parametrize("system", ["hiermem", "right", "closed"])
@torch.inference_mode()
def test_pubmedqa_asks_each_question_once(system: str) -> None:
    task = pubmedqa.PubMedQA(data=Path("pubmedqa"), method=system, together=3)
    result = task.measure(wide(), items(), ResultLog(None, {}))
    assert result["n"] == 5
    assert 0 <= result["metrics"]["accuracy"] <= 1
    assert result["metrics"]["long_answer_perplexity"] > 1
    assert ("recall" in result["metrics"]) == (system == "hiermem")


@torch.inference_mode()
def test_half_of_a_text_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `pruned`, in every task, before a question is asked."""
    kept, real = [], Pruned.read

    def read(self: Pruned, text: str) -> PrefilledContext:
        prefill = real(self, text)
        kept.append(prefill.working.cache.mean_tokens / sum(prefill.working.num_tokens))
        return prefill

    monkeypatch.setattr(Pruned, "read", read)
    model = reader(config=WIDE.with_working(policy="window"))
    model.adapter.trained_range = 4096
    pruned: dict[str, Any] = {"method": "pruned", "keep": 0.5}
    task = pubmedqa.PubMedQA(data=Path("pubmedqa"), together=3, **pruned)
    task.measure(model, items(), ResultLog(None, {}))
    recall = mqar.Mqar(pairs=(20,), lengths=(300,), limit=1, **pruned)
    recall.measure(model, None, ResultLog(None, {}))
    assert len(kept) == 3 and all(0.4 < share <= 0.51 for share in kept)


def test_a_text_is_read_once_for_all_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reads = wide(), []
    real = HierMemModel.read
    monkeypatch.setattr(HierMemModel, "read", lambda *a, **k: reads.append(1) or real(*a, **k))
    with torch.inference_mode():
        task = pubmedqa.PubMedQA(data=Path("pubmedqa"), together=3)
        task.measure(model, items(), ResultLog(None, {}))
    assert len(reads) == 2


ROW = {
    "QUESTION": "Does it help?",
    "CONTEXTS": ["It helped."],
    "LONG_ANSWER": "It helps.",
    "final_decision": "yes",
}


@pytest.mark.parametrize(
    "change",
    [
        {"QUESTION": 3},
        {"QUESTION": " "},
        {"CONTEXTS": "It helped."},
        {"CONTEXTS": [3]},
        {"CONTEXTS": []},
        {"LONG_ANSWER": None},
        {"final_decision": "oui"},
        {"final_decision": ["yes"]},
    ],
)
def test_odd_questions_are_refused_by_name(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "test_ground_truth.json").write_text('{"7": "yes"}', "utf-8")
    (tmp_path / "ori_pqal.json").write_text(json.dumps({"7": ROW}), "utf-8")
    assert len(pubmedqa.load(tmp_path, "test")) == 1
    (tmp_path / "ori_pqal.json").write_text(json.dumps({"7": ROW | change}), "utf-8")
    with pytest.raises(InputError, match="PubMedQA question 7 lacks"):
        pubmedqa.load(tmp_path, "test")
