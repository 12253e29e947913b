"""Drafts copied from the prompt: the same tokens and the same memory as one token a pass, in fewer passes."""

from itertools import chain, islice
from typing import Any

import pytest
import torch
from readers import assert_same_working, backbone, changed, ids_of, lively, over, reader, says, settings

from hiermem.decoding import Continuation
from hiermem.drafts import LENGTH, LONGEST, PromptLookup
from hiermem.eval.decoding_speed import _systems
from hiermem.greedy import DraftedRow, in_step
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel

CONFIGS = {
    "attention": settings(policy="attention"),
    "everything": settings(policy="none", positions="absolute"),
    "without gaps": settings(policy="window", positions="compact"),
    "NAMM": settings(policy="namm"),
    "Mamba heads": changed(
        settings(policy="attention"),
        mamba=MambaConfig(groups=[[0, 1], [2, 0]], taps=3, window=6, sinks=2),
    ),
    "memory embeddings": changed(settings(), summary=SummaryConfig(tokens=2, sensory=3, width=8, last=3)),
    "half of a segment read beforehand": changed(
        settings(16, 16, policy="forget", positions="compact"),
        summary=SummaryConfig(tokens=2, sensory=3, width=8, query="half"),
    ),
}

PASSAGE = list(range(20, 60))
ANSWER = [
    5,
    6,
    *PASSAGE[3:27],
    61,
    *PASSAGE[30:38],
    62,
    63,
    *PASSAGE[:5],
    61,
    *PASSAGE[6:9],
    64,
    *PASSAGE[10:],
]
"""Copies of the passage, some of which break off where a draft goes on."""


def made(name: str) -> HierMemModel:
    model = reader(config=CONFIGS[name])
    return lively(model) if model.summary is not None else model


def prompt() -> torch.Tensor:
    return torch.tensor([[*PASSAGE, 7, 8, 9]])


def plainly(model: HierMemModel, ids: torch.Tensor, row: Continuation) -> WorkingMemory:
    """The memory after a row has taken its tokens one a pass."""
    memory = model.new_recurrent_memory()
    for _ in in_step(model.reader, memory, ids, [row]):
        pass
    return memory


def assert_same(one: WorkingMemory, other: WorkingMemory) -> None:
    """Equal bookkeeping and tensors, also those of Mamba heads and of segments."""
    assert_same_working(one, other)
    states = [{**memory.state_dict()} for memory in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-4, rtol=1e-3)
    if one.recurrence is not None and other.recurrence is not None:
        pairs = zip(one.recurrence.segment_ids, other.recurrence.segment_ids, strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_drafts_change_neither_tokens_nor_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a row is stopped, within a draft or behind it, by itself or from outside."""
    model, ids, back = made(name), prompt(), list[int]()
    says(model, monkeypatch, ids.shape[1], ANSWER)
    go_back = WorkingMemory.go_back_to

    def counted(memory: WorkingMemory, before: WorkingMemory) -> None:
        back.append(memory.num_tokens[0] - before.num_tokens[0])
        go_back(memory, before)

    monkeypatch.setattr(WorkingMemory, "go_back_to", counted)
    for limit in (1, 9, 30, 47, len(ANSWER)):
        plain = Continuation((), limit)
        expected = plainly(model, ids, plain)
        for wanted in (limit, len(ANSWER)):
            row, memory = Continuation((), wanted), model.new_recurrent_memory()
            drafted = DraftedRow(model.reader, memory, ids, row)
            tokens = drafted.tokens()
            assert len([*islice(tokens, limit)]) == limit
            tokens.close()
            drafted.settle()
            assert row.tokens == plain.tokens == ANSWER[:limit]
            assert_same(expected, memory)
    assert drafted.passes < len(ANSWER) / 2
    assert len([tokens for tokens in back if tokens > 1]) > 10


@torch.no_grad()
def test_what_is_copied_from_the_prompt_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, answer = made("attention"), prompt(), ANSWER[:36]
    widths = says(model, monkeypatch, ids.shape[1], answer)
    row = Continuation((), len(answer))
    for _ in model.reader.greedy(model.new_recurrent_memory(), ids, [row]):
        pass
    assert row.tokens == answer
    assert widths[:3] == [16, 16, 11] and sum(width > 1 for width in widths[3:]) == 5
    assert len(widths[3:]) < len(answer) / 2


@torch.no_grad()
def test_drafts_become_rare_where_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = made("everything"), prompt()
    pairs = [(*PASSAGE[at : at + 2], 61 + at) for at in range(0, 30, 2)]  # two tokens, then another
    answer = [*chain.from_iterable(pairs), *PASSAGE]
    widths = says(model, monkeypatch, ids.shape[1], answer)
    row = Continuation((), len(answer))
    for _ in model.reader.greedy(model.new_recurrent_memory(), ids, [row]):
        pass
    assert row.tokens == answer
    drafts = [width > 2 for width in widths[3:]]
    assert sum(drafts[:45]) <= 5 and sum(drafts[45:]) >= 2  # they come back where something is copied


@torch.no_grad()
def test_a_random_model_says_the_same_and_ends_at_the_same_token() -> None:
    phrase = ids_of(9)
    ids = torch.cat((phrase, ids_of(5, seed=2), phrase, ids_of(4, seed=3), phrase[:, :6]), dim=1)
    for name in ("attention", "Mamba heads"):
        model, whole = made(name), Continuation((), 60)
        plainly(model, ids, whole)
        for end in sorted(set(whole.tokens)):
            plain, row, memory = (
                Continuation({end}, 60),
                Continuation({end}, 60),
                model.new_recurrent_memory(),
            )
            expected = plainly(model, ids, plain)
            drafted = DraftedRow(model.reader, memory, ids, row)
            for _ in drafted.tokens():
                pass
            drafted.settle()
            assert (row.tokens, row.ended) == (plain.tokens, plain.ended)
            assert_same(expected, memory)


@torch.no_grad()
def test_a_draft_that_is_not_taken_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by what is not finite behind it, nor where learned positions end."""
    learned = over(backbone("gpt2"), policy="none", positions="absolute", update_interval=48)
    ids = ids_of(33) % 7
    plain, row = Continuation((), 31), Continuation((), 31)
    plainly(learned, ids, plain)
    for _ in learned.reader.greedy(learned.new_recurrent_memory(), ids, [row]):
        pass
    assert row.tokens == plain.tokens

    model, ids, broken = made("attention"), prompt(), list[int]()
    says(model, monkeypatch, ids.shape[1], ANSWER)
    read = model.adapter.read_chunk

    def breaking(memory: WorkingMemory, ids: torch.Tensor, *others: Any) -> torch.Tensor:
        logits, read_ids = read(memory, ids, *others), ids[0].tolist()
        if len(read_ids) <= 2 * LENGTH and 48 in read_ids:  # a draft goes on with it, the answer does not
            logits[:, read_ids.index(48) - len(read_ids) :] = torch.nan
            broken.append(len(read_ids))
        return logits

    monkeypatch.setattr(model.adapter, "read_chunk", breaking)
    row = Continuation((), 30)
    for _ in model.reader.greedy(model.new_recurrent_memory(), ids, [row]):
        pass
    assert row.tokens == ANSWER[:30] and broken


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
    found = [ready()(40) for ready in _systems(model, prompt()).values()]
    assert len(found) == 3 and found[0] == found[1] == found[2]
