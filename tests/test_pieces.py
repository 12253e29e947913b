"""Segments that recall by their first half: in pieces, by rows, token by token, they are the text so far."""

import pytest
import torch
from readers import ids_of
from test_mamba import isolated, replaced
from test_summary import handing_on, published
from torch import Tensor

from hiermem.backbone import Backbone
from hiermem.errors import InputError
from hiermem.memory.cache.kv_cache import KVCache
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel

NEAR = {"atol": 5e-5, "rtol": 1e-3}
CUTS = ((3, 21, 60), (16, 19, 30, 33, 47), (40, 41, 42), (59, 60, 61))


def assert_same(one: WorkingMemory, other: WorkingMemory) -> None:
    """Equal bookkeeping and, up to rounding, equal tensors."""
    assert one.bookkeeping() == other.bookkeeping()
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **NEAR)


def in_pieces(model: HierMemModel, ids: Tensor, ends: tuple[int, ...]) -> None:
    """Every piece's logits are those of one call over the text up to its end."""
    cache, start = None, 0
    for end in (*ends, ids.shape[1]):
        output = model(ids[:, start:end], past_key_values=cache)
        whole = model(ids[:, :end])
        torch.testing.assert_close(output.logits, whole.logits[:, start:], **NEAR)
        cache, start = output.past_key_values, end
        assert_same(cache.memory, whole.past_key_values.memory)


@torch.no_grad()
@pytest.mark.parametrize("ends", CUTS)
def test_pieces_of_forward_are_the_text_up_to_there(ends: tuple[int, ...]) -> None:
    """After 59 to 61 of segments of 16 tokens the fourth has recalled by all of its half."""
    in_pieces(handing_on(published()), ids_of(75), ends)
    in_pieces(handing_on(published(residual=True, tokens=2, sensory=0)), ids_of(75), ends)


@torch.no_grad()
def test_pieces_with_mamba_heads() -> None:
    in_pieces(replaced(isolated()), ids_of(75), (21, 60))


@torch.no_grad()
def test_decoding_and_likelihoods_are_the_text_up_to_there() -> None:
    model, ids = handing_on(published()), ids_of(37)
    made = model.generate(ids, max_new_tokens=14, do_sample=False, min_new_tokens=14)
    for end in range(37, 51):
        assert model(made[:, :end]).logits[0, -1].argmax() == made[0, end]
    memory = model.new_recurrent_memory()
    model.read_ids(memory, made[:, :35])
    scored = model.reader.logits(memory, made[:, 35:], 4)[0]
    torch.testing.assert_close(scored, model(made).logits[0, -4:], **NEAR)


@torch.no_grad()
def test_rows_out_of_step_are_read_as_each_alone() -> None:
    """A token at a time; many at once only where no row must begin a segment short."""
    model, lengths, ids = handing_on(published()), (70, 48, 33), ids_of(90, rows=3)
    mask = (torch.arange(70) < torch.tensor(lengths).unsqueeze(1)).long()
    cache = model(ids[:, :70], attention_mask=mask).past_key_values
    for step in range(12):
        logits = model(ids[:, step : step + 1], past_key_values=cache).logits
        for row, length in enumerate(lengths):
            known = torch.cat((ids[row, :length], ids[row, : step + 1])).unsqueeze(0)
            torch.testing.assert_close(logits[row], model(known).logits[0, -1:], **NEAR)
    with pytest.raises(InputError, match="same place of their segments"):
        model(ids[:, :40], past_key_values=cache)
    mamba = replaced(isolated())
    cache = mamba(ids[:, :70], attention_mask=mask).past_key_values
    with pytest.raises(InputError, match="Mamba heads and the query half"):
        mamba(ids[:, :1], past_key_values=cache)


@torch.no_grad()
def test_padded_prompts_are_gone_on_with_as_each_alone() -> None:
    model, ids = handing_on(published()), ids_of(40, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    both = model.generate(ids, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    for row, begun in ((0, ids[:1]), (1, ids[1:, 5:])):
        alone = model.generate(begun, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        assert torch.equal(both[row, 40:], alone[0, begun.shape[1] :])


@torch.no_grad()
@pytest.mark.parametrize(("owner", "step"), [(Backbone, "step"), (KVCache, "evict")])
def test_a_piece_that_fails_leaves_the_memory_as_it_was(
    monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    model, ids = handing_on(published()), ids_of(60)
    cache = model(ids[:, :35]).past_key_values
    before, expected = cache.memory.copy(), model(ids[:, :48]).logits[:, 35:]
    real = getattr(owner, step)

    def fails(*_: object) -> dict[str, Tensor]:
        raise MemoryError

    monkeypatch.setattr(owner, step, fails)
    with pytest.raises(MemoryError):
        model(ids[:, 35:48], past_key_values=cache)
    assert_same(cache.memory, before)
    monkeypatch.setattr(owner, step, real)
    torch.testing.assert_close(model(ids[:, 35:48], past_key_values=cache).logits, expected, **NEAR)
