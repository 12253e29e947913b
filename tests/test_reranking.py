"""A second look at what was recalled."""

import pytest
import torch
from readers import reader, text_of
from torch.nn import functional as F

from hiermem.asking import AskConfig, recall
from hiermem.errors import InputError
from hiermem.memory.longterm import Hit, Record
from hiermem.model import HierMemModel
from hiermem.reranking import ASKED, WEIGHT, in_doubt, reranked

QUESTION = "Who sailed north?"


def hit(segment: int, score: float, text: str = "") -> Hit:
    return Hit(segment, score, Record(0, torch.zeros(0, dtype=torch.int32), 0, len(text), text))


def expected(model: HierMemModel, found: Hit) -> float:
    """The question's log-likelihood after the text by one plain call, and the score."""
    ids = [
        model.tokenizer(part, add_special_tokens=False).input_ids
        for part in (found.record.text.strip() + ASKED, f" {QUESTION}")
    ]
    whole, count = torch.tensor([ids[0] + ids[1]]), len(ids[1])
    with torch.no_grad():
        logits = model.backbone(whole).logits[0, -count - 1 : -1]
    return WEIGHT * found.score - float(F.cross_entropy(logits, whole[0, -count:], reduction="sum"))


def test_the_best_is_in_doubt_where_the_next_is_close() -> None:
    assert in_doubt([hit(0, 10.0), hit(1, 8.5)], 0.2)
    assert not in_doubt([hit(0, 10.0), hit(1, 7.5)], 0.2)
    assert not in_doubt([hit(0, 10.0)], 0.2)
    assert not in_doubt([hit(0, 0.0), hit(1, 0.0)], 0.2)  # nothing fits at all


def test_segments_are_ranked_by_score_and_likelihood_of_the_question() -> None:
    model = reader()
    hits = [hit(n, score, text_of(20 + n, seed=n)) for n, score in enumerate((9.0, 8.8, 8.5, 8.4, 2.0))]
    found = reranked(model, hits, QUESTION)
    assert found == sorted(hits, key=lambda one: -expected(model, one)) != hits


def test_only_the_best_are_looked_at_and_only_in_doubt() -> None:
    model = reader()
    memory = model.read(text_of(300))
    plain = recall(model, memory, QUESTION, 6)
    for settings in (AskConfig(rerank=3, doubt=0.0), AskConfig(rerank=0, doubt=9.0)):
        model.config.asking = settings
        assert recall(model, memory, QUESTION, 6) == plain
    model.config.asking = AskConfig(rerank=3, doubt=9.0)
    found = recall(model, memory, QUESTION, 6)
    assert found[:3] == reranked(model, plain[:3], QUESTION) and found[3:] == plain[3:]
    assert recall(model, memory, QUESTION, 1) == found[:1]  # the best of three, of which one was wanted


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="rerank and doubt"):
        AskConfig(rerank=-1)
