"""Drafts copied from the prompt: the same tokens and the same memory as one token a pass, in fewer passes."""

from typing import Any

import pytest
import torch
from readers import assert_same_working, ids_of, lively, reader, says, settings

from hiermem.config import HierMemConfig
from hiermem.decoding import Continuation
from hiermem.drafts import LENGTH, LONGEST, PromptLookup
from hiermem.eval.decoding_speed import _systems
from hiermem.greedy import DraftedRow, in_step
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.model import HierMemModel


def with_parts(config: HierMemConfig, **parts: Any) -> HierMemConfig:
    return HierMemConfig(**{**config.settings(), **parts})


CONFIGS = {
    "attention": settings(policy="attention"),
    "everything": settings(policy="none", positions="absolute"),
    "without gaps": settings(policy="window", positions="compact"),
    "NAMM": settings(policy="namm"),
    "Mamba heads": with_parts(
        settings(policy="attention"),
        mamba=MambaConfig(groups=[[0, 1], [2, 0]], taps=3, window=6, sinks=2),
    ),
    "memory embeddings": with_parts(settings(), summary=SummaryConfig(tokens=2, width=8, last=3)),
    "half of a segment read beforehand": with_parts(
        settings(16, 16, policy="forget", positions="compact"),
        summary=SummaryConfig(tokens=2, sensory=3, width=8, query="half"),
    ),
}


def made(name: str) -> HierMemModel:
    model = reader(config=CONFIGS[name])
    return lively(model) if model.summary is not None else model


def repeating() -> torch.Tensor:
    """A prompt after which a model of random weights says again some of what stands there."""
    phrase = ids_of(9)
    return torch.cat((phrase, ids_of(5, seed=2), phrase, ids_of(4, seed=3), phrase[:, :6]), dim=1)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_drafts_change_neither_tokens_nor_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiermem.decoding.COPIES", 100)  # a phrase that loops is what a draft finds
    model, ids = made(name), repeating()
    for limit in (1, 7, 60):
        one, other = model.new_recurrent_memory(), model.new_recurrent_memory()
        plain, row = Continuation((), limit), Continuation((), limit)
        for _ in in_step(model.reader, one, ids, [plain]):
            pass
        drafted = DraftedRow(model.reader, other, ids, row)
        assert len(list(drafted.tokens())) == len(plain.tokens) == limit
        drafted.settle()
        assert row.tokens == plain.tokens
        assert other.num_tokens == one.num_tokens
        assert_same_working(one, other)


@torch.no_grad()
def test_what_is_copied_from_the_prompt_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passage = made("attention"), list(range(20, 60))
    ids = torch.tensor([[*passage, 7, 8, 9]])
    answer = [5, 6, *passage[3:27], 61, *passage[30:38], 62]
    widths = says(model, monkeypatch, ids.shape[1], answer)
    row = Continuation((), len(answer))
    for _ in model.reader.greedy(model.new_recurrent_memory(), ids, [row]):
        pass
    assert row.tokens == answer
    assert widths[:3] == [16, 16, 11] and sum(width > 1 for width in widths[3:]) == 5
    assert len(widths[3:]) < len(answer) / 2


@torch.no_grad()
def test_a_row_that_ends_within_a_draft_leaves_the_memory_before_its_end() -> None:
    model, ids = made("attention"), repeating()
    whole = Continuation((), 60)
    for _ in in_step(model.reader, model.new_recurrent_memory(), ids, [whole]):
        pass
    for end in sorted(set(whole.tokens)):
        one, other = model.new_recurrent_memory(), model.new_recurrent_memory()
        plain, row = Continuation({end}, 60), Continuation({end}, 60)
        for _ in in_step(model.reader, one, ids, [plain]):
            pass
        drafted = DraftedRow(model.reader, other, ids, row)
        for _ in drafted.tokens():
            pass
        drafted.settle()
        assert (row.tokens, row.ended) == (plain.tokens, plain.ended)
        assert_same_working(one, other)


def test_a_draft_is_what_followed_the_longest_run() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9, 2, 3, 5, 8])
    assert lookup.draft() == []
    lookup.extend([1, 2, 3])
    assert lookup.draft(2) == [4, 9]  # after 1 2 3, though 2 3 alone stood later before 5
    lookup.extend([5])
    assert lookup.draft() == [8, 1, 2, 3, 5]
    assert lookup.draft(0) == []
    lookup.extend([7, 2, 3])
    assert lookup.draft(1) == [5]  # the newest of two places


def test_a_draft_is_short_and_looks_up_few_tokens() -> None:
    tokens = list(range(40))
    lookup = PromptLookup([*tokens, *tokens[:LONGEST]])
    assert lookup.draft() == tokens[LONGEST : LONGEST + LENGTH]
    assert PromptLookup([3, 4, 3]).draft() == []  # one token alone says little


@torch.no_grad()
def test_every_way_to_decode_says_the_same() -> None:
    """What `bench decode` compares: with drafts, one token a pass, and the backbone by itself."""
    model = made("everything")
    found = [decode(40) for decode in _systems(model, repeating()).values()]
    assert len(found) == 3 and found[0] == found[1] == found[2]
