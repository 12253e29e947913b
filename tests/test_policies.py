"""Policies: what the attention policy adds up equals a slow sum over full attention matrices."""

from typing import Any

import pytest
import torch
from readers import backbone, ids_of, over
from torch import Tensor

from hiermem.attention import SoftmaxAttention
from hiermem.errors import InputError
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.chunk import Chunk
from hiermem.memory.masks import additive, seen_exactly
from hiermem.memory.policies import (
    POLICIES,
    AttentionPolicy,
    CacheStats,
    EvictionPolicy,
    FullCachePolicy,
    L2NormPolicy,
    WindowPolicy,
)
from hiermem.memory.policy_names import POLICY_NAMES
from hiermem.model import HierMemModel

NEAR, DECAY = 3, 0.997


def eager_attention(family: str, ids: Tensor) -> list[Tensor]:
    """Attention matrices ``[H, N, N]`` of every layer, from transformers itself."""
    model = backbone(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [matrix[0] for matrix in model(ids, output_attentions=True).attentions]


def slow_received(matrix: Tensor, groups: int, stride: int, near: int = NEAR, decay: float = DECAY) -> Tensor:
    """The fading sum for every token, ``[G, N]``, from one full matrix; loops and nothing else."""
    heads, length, _ = matrix.shape
    received = torch.zeros(groups, length, dtype=torch.float64)
    for query in range(stride - 1, length, stride):
        for key in range(query - near + 1):
            for head in range(heads):
                share = stride * decay ** (length - 1 - query) / (heads // groups)
                received[head // (heads // groups), key] += share * float(matrix[head, query, key])
    return received


def received(model: HierMemModel, ids: Tensor, parts: list[int]) -> list[Tensor]:
    """The policy's state of every layer after reading ``ids`` in ``parts``, ``[G, N]``."""
    memory = model.new_working_memory(model.config.working, 1)
    with torch.no_grad():
        for part in ids.split(parts, dim=1):
            model.adapter.read_chunk(memory, part, [part.shape[1]])
    return [layer.state["received"][0] for layer in memory.caches]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-neox", "opt"])
def test_received_attention_is_the_sum_over_full_matrices(family: str) -> None:
    ids = ids_of(36)
    model = over(backbone(family), policy="keen", budget=64, update_interval=64, sinks=2)
    states = received(model, ids, [8, 8, 8, 8, 4])
    for state, matrix in zip(states, eager_attention(family, ids), strict=True):
        slow = slow_received(matrix, state.shape[0], AttentionPolicy.stride)
        # A sliding layer may have let go of what it no longer sees.
        torch.testing.assert_close(state.double(), slow[:, -state.shape[1] :], atol=1e-4, rtol=1e-3)


def test_heavy_hitters_are_the_sum_over_all_queries() -> None:
    ids = ids_of(36)
    states = received(over(backbone("llama"), policy="h2o", budget=64, update_interval=64), ids, [8, 20, 8])
    for state, matrix in zip(states, eager_attention("llama", ids), strict=True):
        slow = slow_received(matrix, state.shape[0], stride=1, near=0, decay=1.0)
        torch.testing.assert_close(slow.sum(1), torch.full_like(slow.sum(1), 36.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(state.double(), slow, atol=1e-4, rtol=1e-3)


def test_the_smallest_keys_are_kept() -> None:
    """Of 36 tokens each head keeps sinks, recent ones, and the smallest keys of the others."""
    ids, budget = ids_of(36), 12
    model = over(backbone("llama"), 48, policy="l2_norm", budget=budget, update_interval=48)
    memory = model.new_working_memory(model.config.working)
    with torch.no_grad():
        model.read_ids(memory, ids)
    before = [cache.keys for cache in memory.caches]
    memory.evict()
    for keys, pruned in zip(before, memory.caches, strict=True):
        assert keys is not None and pruned.positions is not None
        norms = keys[0].norm(dim=-1)
        norms[:, : model.config.working.sinks] = norms[:, -model.config.working.recent(budget) :] = 0.0
        expected = norms.argsort(dim=1, stable=True)[:, :budget].sort(dim=1).values
        assert torch.equal(pruned.positions[0], expected)
    with pytest.raises(InputError, match="scores keys"):
        L2NormPolicy().scores(view([0, 1], 2))


def test_the_help_names_every_policy() -> None:
    own = [name for name in POLICIES if POLICIES[name].__module__.startswith("hiermem.")]
    assert own == list(POLICY_NAMES)


def test_chunks_that_end_on_the_stride_change_nothing() -> None:
    """Guaranteed where all chunks but the last are multiples of `stride`."""
    model, ids = over(backbone(), policy="keen", budget=64, update_interval=64), ids_of(48)
    whole = received(model, ids, [48])
    for parts in ([16, 32], [4] * 12, [8, 12, 28]):
        for one, other in zip(received(model, ids, parts), whole, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_other_chunks_look_at_the_same_queries() -> None:
    model, ids = over(backbone(), policy="keen", budget=64, update_interval=64), ids_of(48)
    whole = received(model, ids, [48])
    for parts in ([1] * 48, [5, 43], [7] * 6 + [6]):
        for one, other in zip(received(model, ids, parts), whole, strict=True):
            torch.testing.assert_close(one, other)


def test_padding_does_not_fade() -> None:
    model = over(backbone(), 8, policy="keen", budget=64, update_interval=64)
    ids = ids_of(400, rows=2)
    mask = torch.ones_like(ids)
    mask[1, 24:] = 0
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).past_key_values.memory.caches[0]
        alone = model(ids[1:, :24]).past_key_values.memory.caches[0]
    real = batch.positions[1, 0] >= 0
    torch.testing.assert_close(batch.state["received"][1][:, real], alone.state["received"][0])


def test_padding_is_not_looked_at() -> None:
    model, ids = over(backbone(), 8, policy="keen", budget=64, update_interval=64), ids_of(40, rows=2)
    mask = torch.ones_like(ids)
    mask[1, 24:] = 0
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).past_key_values.memory
        alone = model(ids[1:, :24]).past_key_values.memory
    for layer, single in zip(batch.caches, alone.caches, strict=True):
        state, expected = layer.state["received"][1, :, :24], single.state["received"][0]
        torch.testing.assert_close(state / state.sum(), expected / expected.sum(), atol=1e-5, rtol=1e-4)
        assert (layer.state["received"][1, :, 24:] == 0).all()


def test_padding_is_finite_in_half_precision() -> None:
    """The lowest half number plus a strongly negative logit would overflow where a query sees nothing."""
    query, key = torch.full((1, 1, 2, 4), 10.0).half(), torch.full((1, 1, 2, 4), -10.0).half()
    padding = torch.full((1, 2), -1)
    chunk = Chunk(padding, padding, padding, (0,), (0,), True)
    mask = additive(seen_exactly(LayerCache(), chunk, torch.arange(2), None), 1, torch.float16)
    assert SoftmaxAttention(1.0).weights(query, key, mask).isfinite().all()


def test_a_policy_that_does_not_look_costs_no_state() -> None:
    for policy in ("none", "window"):
        model = over(backbone(), policy=policy)
        assert all(not layer.state for layer in model(ids_of(40)).past_key_values.memory.caches)


# ---- scores and protection


def view(positions: list[int], seen: int, recent: int = 0, **state: Tensor) -> CacheStats:
    keys = state.pop("keys", None)
    return CacheStats(torch.tensor([[positions]]), torch.tensor([[[seen]]]), state, recent=recent, keys=keys)


@pytest.mark.parametrize(
    "name", [name for name in POLICIES if name not in ("lively", "segment_local", "linear")]
)  # the first two drop more, the last needs weights
def test_sinks_and_recent_are_worth_everything_and_empty_slots_nothing(name: str) -> None:
    policy: EvictionPolicy = POLICIES[name](sinks=2)
    received = torch.tensor([[[9.0, 1.0, 0.5, 8.0, 2.0, 0.0, 0.0, 0.0]]])
    state = {"received": received, "average": received.unsqueeze(-1).expand(-1, -1, -1, 17)}
    state["keys"] = torch.ones(1, 1, 8, 4)
    scores = policy.protected_scores(view([-1, 0, 1, 4, 6, 7, 8, 9], 10, recent=3, **state))[0, 0]
    assert scores[0] == -torch.inf
    assert (scores[[1, 2, 5, 6, 7]] == torch.inf).all()
    assert scores[[3, 4]].isfinite().all()


def test_newer_is_better_for_the_window() -> None:
    scores = WindowPolicy(sinks=0).protected_scores(view([3, 5, 9], 10))[0, 0]
    assert (scores.diff() > 0).all()


def test_all_is_worth_the_same_without_a_policy() -> None:
    assert not FullCachePolicy.evicts
    assert FullCachePolicy(sinks=0).protected_scores(view([3, 5, 9], 10)).unique().numel() == 1


@pytest.mark.parametrize("bad", [{"sinks": -1}, {"decay": 0.0}, {"decay": 1.1}, {"near": -1}])
def test_bad_settings_are_explained(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="negative"):
        AttentionPolicy(**bad)


class OddPolicy(WindowPolicy):
    """Says -inf of odd positions, which only a policy that drops may."""

    name = "odd"

    def scores(self, stats: CacheStats) -> Tensor:
        return torch.where(stats.positions % 2 == 0, 0.0, -torch.inf)


class NarrowPolicy(WindowPolicy):
    """Gives one score for all heads."""

    name = "narrow"

    def scores(self, stats: CacheStats) -> Tensor:
        return stats.positions[:, :1].float()


def with_policy(policy: EvictionPolicy) -> HierMemModel:
    model = over(backbone(), budget=40)
    new_memory = model.adapter.new_memory

    def swapped(*arguments: Any, **options: Any) -> Any:
        memory = new_memory(*arguments, **options)
        memory.policy = memory.cache.policy = policy
        return memory

    model.adapter.new_memory = swapped  # type: ignore[method-assign]
    return model


def test_a_policy_that_does_not_drop_keeps_what_the_budget_has_room_for() -> None:
    """A batch whose rows end at different places decides as each row alone."""
    model, ids, lengths = with_policy(OddPolicy()), ids_of(70, rows=2), (70, 40)
    mask = (torch.arange(70) < torch.tensor(lengths).unsqueeze(1)).long()
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).logits
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(batch[row, :length], alone, atol=1e-5, rtol=1e-4)


def test_a_policy_that_does_not_score_every_token_is_refused() -> None:
    with torch.no_grad(), pytest.raises(InputError, match=r"narrow must score every cached token"):
        with_policy(NarrowPolicy())(ids_of(80))
