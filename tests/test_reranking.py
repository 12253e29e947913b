"""Reranking what was recalled by the likelihood of the question."""

import pytest
import torch
from readers import reader, settings, text_of
from torch.nn import functional as F

from hiermem.asking import recall
from hiermem.asking_config import AskConfig
from hiermem.errors import InputError, NonFiniteError
from hiermem.memory.longterm import Hit, SegmentRecord
from hiermem.model import HierMemModel
from hiermem.reranking import PREFIX, WEIGHT, _log_likelihood, is_close, reranked

QUESTION = "Who sailed north?"


def hit(segment: int, score: float, text: str = "") -> Hit:
    return Hit(segment, score, SegmentRecord(0, torch.zeros(0, dtype=torch.int32), 0, len(text), text))


def expected(model: HierMemModel, found: Hit) -> float:
    """The question's log-likelihood after the text by one plain call, and the score."""
    text, prefix, asked = (
        model.tokenizer(part, add_special_tokens=False).input_ids
        for part in (found.record.text.strip(), PREFIX, f" {QUESTION}")
    )
    whole, count = torch.tensor([[*model.tokenizer("").input_ids, *text, *prefix, *asked]]), len(asked)
    with torch.no_grad():
        logits = model.backbone(whole).logits[0, -count - 1 : -1]
    return WEIGHT * found.score - float(F.cross_entropy(logits, whole[0, -count:], reduction="sum"))


def some_hits() -> list[Hit]:
    return [hit(n, score, text_of(6 + n, seed=n)) for n, score in enumerate((9.0, 8.8, 8.5, 8.4, 2.0))]


def test_scores_are_close_where_the_last_one_wanted_hardly_leads() -> None:
    hits = [hit(0, 10.0), hit(1, 8.5), hit(2, 4.0)]
    assert is_close(hits, 1, 0.2) and not is_close(hits, 1, 0.1)
    assert is_close(hits, 2, 0.6) and not is_close(hits, 2, 0.2)
    assert not is_close(hits, 3, 9.0) and not is_close(hits, 0, 9.0)  # all of them, none of them
    assert is_close([hit(0, -1.0), hit(1, -1.1)], 1, 0.2)


@pytest.mark.parametrize("bos", [False, True])
def test_segments_are_ranked_by_score_and_likelihood_of_the_question(bos: bool) -> None:
    model, hits = reader(bos=bos), some_hits()
    found = reranked(model.reader, hits, QUESTION)
    assert found == sorted(hits, key=lambda one: -expected(model, one)) != hits


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_end_of_a_segment_beyond_the_trained_range_is_left_out(family: str) -> None:
    model, text, other = reader(family), text_of(200), text_of(200, seed=4)
    begun = len(model.tokenizer.decode(model.tokenizer(text, add_special_tokens=False).input_ids[:64]))
    found = [
        _log_likelihood(model.reader, segment, QUESTION)
        for segment in (text, text[:begun] + other, other[:begun] + text[begun:])
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-5) and found[0] != pytest.approx(found[2], abs=1e-3)


def test_a_likelihood_that_is_not_finite_is_refused() -> None:
    model = reader()
    model.backbone.lm_head.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match="float32"):
        reranked(model.reader, some_hits(), QUESTION)


def test_what_is_recalled_and_shown_is_the_best_of_those_that_are_reranked() -> None:
    model = reader()
    memory = model.read(text_of(300))
    plain = recall(model.reader, memory, QUESTION, model.config.asking, 6)
    for config in (AskConfig(rerank=6, margin=0.0), AskConfig(rerank=0, margin=9.0)):
        model.config.asking = config
        assert recall(model.reader, memory, QUESTION, model.config.asking, 2) == plain[:2]
    before = model.prepare(memory, QUESTION, 2)
    model.config.asking = AskConfig(rerank=6, margin=9.0)
    found = recall(model.reader, memory, QUESTION, model.config.asking, 2)
    assert found == reranked(model.reader, plain, QUESTION)[:2] and set(found) != set(plain[:2])
    after = model.prepare(memory, QUESTION, 2)
    assert after.ids.tolist() != before.ids.tolist()
    assert {source.segment for source in after.sources} <= {one.segment for one in found}


@pytest.mark.parametrize("top_k", [5, 8])
def test_a_reranking_that_could_change_nothing_is_refused(top_k: int) -> None:
    model = reader(config=settings(top_k=top_k).with_asking(rerank=5))
    memory = model.read(text_of(60))
    with pytest.raises(InputError, match=f"where {top_k} are recalled: give a top_k below 5"):
        model.ask(memory, QUESTION)
    assert model.ask(memory, QUESTION, top_k=0, max_new_tokens=2).sources == []


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"rerank": -1}, "rerank must be 0 or at least 2, not -1"),
        ({"rerank": 1}, "rerank must be 0 or at least 2, not 1"),
        ({"margin": -0.1}, r"margin must not be negative, not -0\.1"),
    ],
)
def test_what_cannot_be_is_refused(bad: dict[str, float], why: str) -> None:
    with pytest.raises(InputError, match=why):
        AskConfig(**bad)
