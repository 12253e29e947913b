"""Head shares: every KV head keeps its own number of tokens, and nothing else changes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from readers import assert_same_working, backbone, ids_of, over, reader, text_of, uneven

from hiermem.memory.cache.head_groups import budget_that_keeps, head_budgets, kept_shares, plan_head_groups
from hiermem.memory.cache.layer import LayerGeometry
from hiermem.memory.state import MemoryState
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.model import HierMemModel


def ragged(family: str = "llama", **working: Any) -> HierMemModel:
    """A model whose heads keep different numbers of tokens."""
    model = backbone(family)
    return over(model, 8, **{"budget": 20, "head_shares": uneven(over(model)), **working})


def memory_of(model: HierMemModel, rows: int = 1) -> WorkingMemory:
    return model.new_working_memory(model.config.working, rows)


# ---- budgets

shares = st.lists(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), min_size=1, max_size=8)


@given(shares, st.integers(1, 3000), st.integers(0, 8))
def test_heads_keep_the_budget_in_the_mean_and_more_with_a_greater_share(
    rows: list[list[float]], budget: int, sinks: int
) -> None:
    made = head_budgets(tuple(map(tuple, rows)), budget, sinks)
    flat, given_shares = [b for row in made for b in row], [share for row in rows for share in row]
    least = min(sinks + max(budget // 16, 1), budget)
    assert min(flat) >= least
    assert budget * len(flat) * 0.9 - len(flat) <= sum(flat) <= budget * len(flat) or min(flat) == least
    ordered = sorted(zip(given_shares, flat, strict=True))
    assert all(one[1] <= other[1] for one, other in pairwise(ordered))


@given(shares, st.integers(40, 3000), st.floats(0.1, 0.9), st.integers(0, 8))
def test_heads_that_cannot_use_their_budget_leave_it_to_no_one(
    rows: list[list[float]], tokens: int, keep: float, sinks: int
) -> None:
    def held(budget: int) -> float:
        made = [min(own, tokens) for row in head_budgets(rows, budget, sinks) for own in row]
        return sum(made) / len(made)

    kept = round(keep * tokens)
    budget = budget_that_keeps(rows, tokens, kept, sinks)
    assert held(budget) <= kept < held(2 * budget + 2)  # steps are coarse: a little more may not be enough
    assert budget_that_keeps(None, tokens, kept, sinks) == kept


@pytest.mark.parametrize("factor", [1.0, 7.5])
def test_budgets_are_in_proportion(factor: float) -> None:
    assert head_budgets(((factor, 3 * factor),), 512, 4) == [[36 + 208, 36 + 720]]


def test_neighbours_with_one_budget_are_one_part() -> None:
    shapes = [LayerGeometry(heads=4), LayerGeometry(heads=4)]
    parts = plan_head_groups(shapes, 512, ((1.0, 1.0, 1.0, 1.0), (4.0, 0.0, 0.0, 4.0)), 4)
    assert [(part.layer, part.heads) for part in parts] == [
        (0, slice(0, 4)),
        (1, slice(0, 1)),
        (1, slice(1, 3)),
        (1, slice(3, 4)),
    ]
    assert len(plan_head_groups(shapes, 512, None, 4)) == 2


def test_replaced_heads_have_no_part_and_no_share() -> None:
    shapes, shares = (
        [LayerGeometry(heads=4), LayerGeometry(heads=4)],
        ((1.0, 3.0, 1.0, 1.0), (0.0, 0.0, 0.0, 4.0)),
    )
    parts = plan_head_groups(shapes, 512, shares, 4, [(0, 1), (1, 3)])
    assert [(part.layer, part.heads) for part in parts] == [(0, [0, 2, 3]), (1, slice(0, 3))]
    assert sum(part.budget * 3 for part in parts) <= 512 * 6
    assert kept_shares(shares, [(0, 1), (1, 3)]) == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    alike = plan_head_groups(shapes, 512, None, 4, [(0, head) for head in range(4)])
    assert [(part.layer, part.heads, part.budget) for part in alike] == [(1, slice(0, 4), 512)]
    nothing = plan_head_groups(shapes, 512, shares, 4, [(0, head) for head in range(4)] + [(1, 3)])
    assert [part.budget for part in nothing] == [512]


@pytest.mark.parametrize("bad", [((1.0, 1.0),), ((1.0,),) * 3, ((1.0, 1.0, 1.0),) * 3])
def test_the_shares_of_another_backbone_are_refused(bad: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="calibrate them for this backbone"):
        memory_of(over(backbone(), head_shares=bad))


@pytest.mark.parametrize("bad", [((0.0, 0.0),), ((-1.0, 2.0),), ((float("nan"), 1.0),), ()])
def test_shares_that_mean_nothing_are_refused(bad: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"finite|must be a list"):
        WorkingMemoryConfig(head_shares=bad)


def test_gaps_are_closed_within_the_trained_range() -> None:
    with pytest.raises(ValueError, match="trained range"):
        memory_of(ragged(positions="compact", budget=40))


# ---- reading


@torch.no_grad()
def test_every_head_holds_its_budget_and_not_a_byte_more() -> None:
    model = ragged(update_interval=16)
    memory = memory_of(model)
    model.read_ids(memory, ids_of(160))
    budgets = head_budgets(uneven(model), 20, 2)
    assert len({budget for row in budgets for budget in row}) == 2
    held = [cache.positions.shape for cache in memory.caches if cache.positions is not None]
    assert held == [(1, 1, budget) for row in budgets for budget in row]
    assert not any(cache.ragged for cache in memory.caches)
    assert memory.cache.mean_tokens == sum(map(sum, budgets)) / len(held) <= 20


@pytest.mark.parametrize("policy", ["window", "keen", "lively"])
@pytest.mark.parametrize("mode", ["distance", "compact"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@torch.no_grad()
def test_padded_rows_in_chunks_are_the_rows_alone(family: str, mode: str, policy: str) -> None:
    model, ids = ragged(family, policy=policy, positions=mode), ids_of(100, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :37] = 0
    whole = model(ids, attention_mask=mask)
    for row, keep in zip(range(2), mask.bool(), strict=True):
        past = None
        for part in ids[row, keep].split(23):
            output = model(part[None], past_key_values=past)
            past = output.past_key_values
        last = whole.logits[row, -output.logits.shape[1] :]
        torch.testing.assert_close(output.logits[0], last, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_state_survives_its_dictionary() -> None:
    model, memory = ragged(), memory_of(ragged())
    model.read_ids(memory, ids_of(71))
    again = memory_of(model)
    again.load_state(memory.state_dict(), memory.bookkeeping(), model.dtype, model.num_embeddings)
    assert_same_working(again, memory, atol=0.0)


@torch.no_grad()
def test_rows_survive_their_order() -> None:
    model, ids = ragged(), ids_of(150, rows=2)
    memory = memory_of(model, 2)
    model.adapter.read_chunk(memory, ids[:, :8], [8, 8])
    again = memory.copy()
    memory.select_rows(torch.tensor([1, 0]))
    memory.select_rows(torch.tensor([1, 0]))
    assert_same_working(again, memory, atol=0.0)


def test_a_memory_with_head_shares_is_saved_and_read_on(tmp_path: Path) -> None:
    plain = reader()
    config = plain.config.with_working(head_shares=uneven(plain))
    model = HierMemModel(config, plain.backbone, plain.tokenizer).eval()
    ids = model.tokenizer(text_of(120)).input_ids
    memory = model.read(ids[:100], progress=False)
    memory.save(tmp_path / "m.hmem")
    loaded = MemoryState.load(tmp_path / "m.hmem", plain)  # its own settings are in the memory
    assert loaded.working.config == config.working
    plain.read(ids[100:], loaded, progress=False)
    assert_same_working(loaded.working, model.read(ids, progress=False).working)


def test_beams_and_samples_run_over_uneven_heads() -> None:
    model, ids = ragged(), ids_of(70)
    greedy = model.generate(ids, max_new_tokens=12, do_sample=False)
    beams = model.generate(ids, max_new_tokens=12, num_beams=3, do_sample=False)
    assert greedy.shape == beams.shape == (1, 82)
