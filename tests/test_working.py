"""The pruned cache: compared with a slow model that keeps everything and masks what was evicted."""

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from families import CONFIGS, ROTARY
from readers import assert_same_working, backbone, ids_of, over, uneven
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from hiermem.attention import SoftmaxAttention
from hiermem.memory.attention import numbers
from hiermem.memory.cache.layer import LayerCache, LayerGeometry
from hiermem.memory.policies import CacheStats, EvictionPolicy
from hiermem.memory.tensor_state import named
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig

POLICIES = ["none", "window", "keen", "lively", "linear", "h2o", "l2_norm"]


def live(memory: WorkingMemory) -> list[Tensor]:
    """True positions held in each layer, ``[B, G, T]``."""
    return [layer.positions for layer in memory.caches if layer.positions is not None]


def cache_of(memory: WorkingMemory, layer: int, head: int, heads: int) -> tuple[LayerCache, int]:
    """The cache of one KV head of a layer with ``heads`` of them, and its place there."""
    for group, cache in zip(memory.cache.head_groups, memory.caches, strict=True):
        own = numbers(group.heads, heads)
        if group.layer == layer and head in own:
            return cache, own.index(head)
    raise AssertionError("every head has a cache")


# ---- the slow reference


class SlowTwin:
    """The same model over its whole history, uncompressed, with a mask of what the library has kept.

    Keys are stored without rotation (the model's own is undone) and rotated from scratch for every chunk.
    """

    name = "hiermem_slow_twin"

    def __init__(self, model: PreTrainedModel, memory: WorkingMemory) -> None:
        self.model, self.memory = model, memory
        self.history: dict[int, tuple[Tensor, Tensor]] = {}
        AttentionInterface.register(self.name, self._attend)
        AttentionMaskInterface.register(self.name, lambda *_, **__: None)

    def read(self, ids: Tensor, first: int, frames: Tensor) -> Tensor:
        """Logits of a chunk that starts at ``first``; the library has not read it yet."""
        self.first, self.frames = first, frames
        before = self.model.config._attn_implementation
        self.model.config._attn_implementation = self.name
        try:
            return self.model(ids, position_ids=frames, use_cache=False).logits
        finally:
            self.model.config._attn_implementation = before

    def _rotate(self, keys: Tensor, frames: Tensor, layer: int, back: bool = False) -> Tensor:
        """``keys [1, 1, N, D]`` rotated at ``frames [1, N]`` through the model's own code."""
        table = getattr(self.model.base_model, "rotary_emb", None)
        if table is None:
            return keys
        kind = (
            (self.model.config.layer_types[layer],) if self.model.config.model_type == "gemma3_text" else ()
        )
        cos, sin = table(keys, frames, *kind)
        scale = (cos**2 + sin**2).mean().sqrt()  # yarn lengthens keys, once
        cos, sin = cos / scale, (-sin if back else sin) / scale
        return sys.modules[type(self.model).__module__].apply_rotary_pos_emb(keys, keys, cos, sin)[1]

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        layer, shape = module.layer_idx, self.memory.geometries
        heads, width = key.shape[1], key.shape[2]
        plain = [self._rotate(key[:, g : g + 1], self.frames, layer, back=True) for g in range(heads)]
        key = torch.cat(plain, dim=1)
        if layer in self.history:
            key = torch.cat((self.history[layer][0], key), dim=2)
            value = torch.cat((self.history[layer][1], value), dim=2)
        self.history[layer] = key, value
        outputs = []
        for head in range(query.shape[1]):
            group = head // (query.shape[1] // heads)
            frames, kept = torch.zeros(key.shape[2], dtype=torch.int64), torch.zeros(key.shape[2]).bool()
            memory, own = cache_of(self.memory, layer, group, heads)
            if memory.positions is not None and memory.position_ids is not None:
                there = memory.positions[0, own] >= 0
                places = memory.positions[0, own][there]
                frames[places], kept[places] = memory.position_ids[0, own][there].long(), True
            frames[self.first :], kept[self.first :] = self.frames[0], True
            turned = self._rotate(key[:, group : group + 1], frames[None], layer)[0, 0]
            logits = query[0, head] @ turned.T * kwargs["scaling"]
            if kwargs.get("softcap"):
                logits = torch.tanh(logits / kwargs["softcap"]) * kwargs["softcap"]
            for row in range(width):
                for column in range(key.shape[2]):
                    distance = self.first + row - column
                    far = shape[layer].window is not None and distance >= shape[layer].window
                    if distance < 0 or far or not kept[column]:
                        logits[row, column] = -torch.inf
            outputs.append(logits.softmax(-1) @ value[0, group])
        return torch.stack(outputs).transpose(0, 1)[None], None


@pytest.mark.parametrize("mode", ["distance", "compact"])
@pytest.mark.parametrize("family", list(CONFIGS))
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_evicted_attention_is_masked_attention_over_everything(family: str, mode: str, shared: bool) -> None:
    learned = family not in ROTARY
    model, ids = backbone(family, torch.float64), ids_of(104)
    shares = uneven(over(model)) if shared else None
    ours = over(model, 8, policy="keen", positions=mode, budget=20, head_shares=shares)
    memory = ours.new_working_memory(ours.config.working, 1)
    slow = SlowTwin(model, memory)
    for at in range(0, 104, 8):
        if learned and mode == "distance" and at >= 64:
            break  # learned positions cannot be turned: values were made where their tokens stood
        part = ids[:, at : at + 8]
        start = at - memory.frames.starts()[0]
        expected = slow.read(part, at, torch.arange(at, at + 8)[None] - at + start)
        logits = ours.adapter.read_chunk(memory, part, [8], logits=8)
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-3)  # angles are float32
    if shared:
        assert len({cache.tokens for cache in memory.caches}) > 1, "no uneven head was tried"
    else:
        assert any((held != held[:, :1]).any() for held in live(memory)), "no ragged head was tried"


# ---- storage


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt-neox"])
@torch.no_grad()
def test_bytes_are_given_back(family: str, policy: str) -> None:
    model = over(backbone(family), 8, policy=policy, budget=20, update_interval=32)
    memory, sizes = model.new_working_memory(model.config.working, 1), []
    for part in ids_of(320)[0].split(8):
        model.read_ids(memory, part[None])
        stored = sum(
            tensor.untyped_storage().nbytes() for layer in memory.caches for _, tensor in named(layer)
        )
        if memory.num_tokens[0] > 8:  # the first chunk may be a view of a fused projection
            assert stored == memory.nbytes
        sizes.append(stored)
    before, after = sizes[-2], sizes[-1]  # the last chunk completes an interval
    if policy != "none":
        assert after < before
        assert max(sizes) == max(sizes[:16])  # and it never grows beyond its first intervals
    elif family in ("mistral", "gemma2"):  # all or most layers have a window
        assert after < before
    else:
        assert after > before


@pytest.mark.parametrize("policy", ["window", "keen", "lively"])
@pytest.mark.parametrize("mode", ["distance", "absolute", "compact"])
@pytest.mark.parametrize(("budget", "interval", "chunk"), [(20, 16, 8), (33, 10, 7), (8, 32, 16), (20, 1, 4)])
@torch.no_grad()
def test_a_head_never_holds_more_than_budget_and_interval(
    policy: str, mode: str, budget: int, interval: int, chunk: int
) -> None:
    settings = {"policy": policy, "positions": mode, "budget": budget, "update_interval": interval}
    model = over(backbone("gemma2"), chunk, **settings)
    memory = model.new_working_memory(model.config.working, 1)
    for part in ids_of(160)[0].split(5):
        model.read_ids(memory, part[None])
        assert memory.cache.tokens <= budget + interval
        if memory.num_tokens[0] % interval == 0:
            assert memory.cache.tokens <= budget
    assert memory.frames.counts.peak_tokens <= budget + interval and (
        memory.policy.drops or memory.frames.counts.peak_tokens > budget
    )


@pytest.mark.parametrize("policy", ["window", "keen", "lively"])
@torch.no_grad()
def test_sinks_and_the_newest_are_always_held(policy: str) -> None:
    model = over(backbone("llama"), 8, policy=policy, budget=20, sinks=3, recent_share=0.4)
    memory = model.new_working_memory(model.config.working, 1)
    for part in ids_of(200)[0].split(8):
        model.read_ids(memory, part[None])
        seen = memory.num_tokens[0]
        wanted = {*range(min(3, seen)), *range(max(seen - 8, 0), seen)}
        for held in live(memory):
            assert all(wanted <= set(row.tolist()) for row in held[0])


@torch.no_grad()
def test_the_window_policy_keeps_sinks_and_newest_alone() -> None:
    model = over(backbone("llama"), 8, policy="window", budget=20, sinks=3)
    memory = model.new_working_memory(model.config.working, 1)
    model.read_ids(memory, ids_of(208))
    for held in live(memory):
        assert torch.equal(held[0, 0], torch.cat((torch.arange(3), torch.arange(191, 208))))


@torch.no_grad()
def test_each_head_keeps_its_own_best_tokens() -> None:
    model = over(backbone("llama"), 16, policy="keen", budget=24, sinks=2)
    memory = model.new_working_memory(model.config.working, 1)
    ids = ids_of(64)
    for at in range(0, 48, 16):
        model.read_ids(memory, ids[:, at : at + 16])
    evict, memory.cache.evict = memory.cache.evict, lambda *_: None  # type: ignore[method-assign]
    model.read_ids(memory, ids[:, 48:])
    full = [dict(named(layer)) for layer in memory.caches]
    evict(memory.frames.decision([True], memory.frames.starts(), ids.device))
    kept_sets = []
    for layer, tensors in zip(memory.caches, full, strict=True):
        assert layer.positions is not None
        for head in range(2):
            positions = tensors["positions"][0, head].tolist()
            scores = tensors["state.received"][0, head].tolist()
            protected = [p for p in positions if p < 2 or p >= 64 - 12]
            value = dict(zip(positions, scores, strict=True))
            others = sorted(value.keys() - set(protected), key=lambda p: (-value[p], p))
            expected = sorted(protected + others[: 24 - len(protected)])
            assert layer.positions[0, head].tolist() == expected
            kept_sets.append(tuple(expected))
    assert len(set(kept_sets)) > 1  # heads differ


@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_sliding_layers_drop_what_left_their_window(policy: str) -> None:
    model = over(backbone("mistral"), 8, policy=policy, budget=40, recent_share=0.25)
    memory = model.new_working_memory(model.config.working, 1)
    model.read_ids(memory, ids_of(208))
    for held in live(memory):
        assert held[held >= 0].min() > 208 - 24
        assert held.shape[-1] == 23 or (memory.policy.drops and held.shape[-1] < 23)


# ---- rows


@torch.no_grad()
def test_rows_can_be_chosen_repeated_and_reordered() -> None:
    model, ids = over(backbone("gemma2"), 8, budget=20), ids_of(96, rows=3)
    mask = torch.ones_like(ids)
    mask[1, :32] = 0
    past = model(ids, attention_mask=mask).past_key_values
    past.reorder_cache(torch.tensor([2, 1, 1, 0]))
    assert past.memory.num_tokens == (96, 64, 64, 96)
    more = ids_of(40, seed=9).expand(4, -1)
    logits = model(more, past_key_values=past).logits
    for row, logit in zip((2, 1, 1, 0), logits, strict=True):
        whole = torch.cat((ids[row][mask[row].bool()], more[0]))[None]
        torch.testing.assert_close(logit, model(whole).logits[0, -40:], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(logits[1], logits[2])


@torch.no_grad()
def test_a_copy_goes_its_own_way() -> None:
    model, ids = over(backbone("llama"), 8, budget=20), ids_of(150)
    memory = model.new_working_memory(model.config.working, 1)
    model.read_ids(memory, ids[:, :90])
    twin, untouched = memory.copy(), memory.copy()
    tensors = [tensor.clone() for tensor in memory.state_dict().values()]
    hidden = model.read_ids(twin, ids[:, 90:])
    assert_same_working(memory, untouched, atol=0.0)
    assert all(map(torch.equal, memory.state_dict().values(), tensors))
    assert torch.equal(model.read_ids(memory, ids[:, 90:]), hidden)
    assert_same_working(memory, twin, atol=0.0)


@torch.no_grad()
def test_held_everywhere_is_what_all_heads_hold() -> None:
    model = over(backbone("llama"), 8, budget=24)
    memory = model.new_working_memory(model.config.working, 1)
    assert not memory.cache.held_everywhere(0, 5).any()
    model.read_ids(memory, ids_of(135))
    sets = [set(row.tolist()) for held in live(memory) for row in held[0]]
    for start, end in ((0, 135), (3, 40), (100, 135), (120, 130)):
        expected = [all(p in held for held in sets) for p in range(start, end)]
        assert memory.cache.held_everywhere(start, end).tolist() == expected


@torch.no_grad()
def test_state_survives_its_dictionary() -> None:
    model, ids = over(backbone("gemma3"), 8, budget=20), ids_of(150)
    memory = model.new_working_memory(model.config.working, 1)
    model.read_ids(memory, ids[:, :101])
    again = model.new_working_memory(model.config.working, 1)
    again.load_state(memory.state_dict(), memory.bookkeeping(), model.dtype, model.num_embeddings)
    assert_same_working(again, memory, atol=0.0)
    assert torch.equal(model.read_ids(again, ids[:, 101:]), model.read_ids(memory, ids[:, 101:]))


# ---- what policies are shown


@dataclass(frozen=True)
class LastQueries(EvictionPolicy):
    """Keeps what it is shown at every eviction, and the window."""

    num_queries: ClassVar[int] = 5  # type: ignore[misc]
    name: ClassVar[str] = "last-queries"
    shown: ClassVar[list[CacheStats]] = []

    def scores(self, view: CacheStats) -> Tensor:
        self.shown.append(view)
        return view.positions.float()


@pytest.mark.parametrize("parts", [[16] * 6, [5, 11, 3, 30, 47], [1] * 33 + [63]])
@torch.no_grad()
def test_policies_are_shown_keys_values_and_the_last_queries_however_a_text_is_cut(parts: list[int]) -> None:
    model, ids = over(backbone("llama"), 16, budget=24, sinks=2), ids_of(96)

    def shown_of(cuts: list[int]) -> list[CacheStats]:
        policy = LastQueries(sinks=2)
        policy.shown.clear()
        config = model.config.working
        memory = WorkingMemory(config, model.adapter.geometries, model.adapter.trained_range, 1, policy)
        for part in ids.split(cuts, dim=1):
            model.read_ids(memory, part)
            assert all(cache.queries is not None for cache in memory.caches)
            twin = WorkingMemory(config, model.adapter.geometries, model.adapter.trained_range, 1, policy)
            twin.load_state(memory.state_dict(), memory.bookkeeping(), model.dtype, model.num_embeddings)
            memory = twin
        return list(policy.shown)

    whole, cut = shown_of([96]), shown_of(parts)
    assert len(whole) == len(cut) == 5 * len(model.adapter.geometries)  # the first is within the budget
    for ours, theirs in zip(cut, whole, strict=True):
        for name in ("keys", "values", "queries", "positions"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=1e-4)
        assert ours.queries is not None and ours.queries.shape == (1, 2, 2, 5, 8)
        assert ours.keys is not None and ours.keys.shape[:3] == ours.positions.shape


@torch.no_grad()
def test_the_last_queries_are_of_each_row() -> None:
    model, ids = over(backbone("llama"), 16, budget=24, sinks=2), ids_of(40, rows=2)
    policy, config = LastQueries(sinks=2), model.config.working
    rows = {row: ids[row : row + 1, : (40, 23)[row]] for row in range(2)}

    def queries(batch: Tensor, lengths: list[int]) -> Tensor:
        memory = WorkingMemory(config, model.adapter.geometries, 64, len(batch), policy)
        for at in range(0, 40, 8):
            valid = [min(max(length - at, 0), 8) for length in lengths]
            if any(valid):
                model.adapter.read_chunk(memory, batch[:, at : at + 8], valid)
        assert memory.caches[1].queries is not None
        return memory.caches[1].queries

    both = queries(ids, [40, 23])
    for row, own in rows.items():
        padded = torch.nn.functional.pad(own, (0, 40 - own.shape[1]))
        alone = queries(padded, [own.shape[1]])
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=1e-4)


# ---- misuse


def test_chunks_are_begun_read_and_committed_in_order() -> None:
    memory = WorkingMemory(WorkingMemoryConfig(), [LayerGeometry(), LayerGeometry()], 1024)
    with pytest.raises(RuntimeError, match="begin first"):
        memory.commit()
    memory.begin(ids_of(4), [4])
    one = torch.zeros(1, 2, 4, 8)
    memory.attend(0, one, one, one, SoftmaxAttention(1.0))
    with pytest.raises(RuntimeError, match="not every layer"):
        memory.commit()
    assert memory.num_tokens == (0,) and memory.cache.tokens == 0


def test_an_interval_must_fit_the_range() -> None:
    with pytest.raises(ValueError, match="trained range of 64 positions: lower"):
        over(backbone("llama"), update_interval=65).new_working_memory(
            WorkingMemoryConfig(update_interval=65)
        )
    WorkingMemory(WorkingMemoryConfig(update_interval=65, positions="absolute"), [LayerGeometry()], 64)


def test_learned_positions_end_where_they_end() -> None:
    model, longer = over(backbone("gpt2")), WorkingMemoryConfig(trained_range=65, update_interval=8)
    with pytest.raises(ValueError, match="64 learned positions, not 65"):
        model.new_working_memory(longer)
    over(backbone("llama")).new_working_memory(longer)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"policy": "no such"}, "choose one of full_cache, window, segment_local, attention"),
        ({"positions": "no such"}, "choose one of distance, absolute, compact"),
        ({"budget": 0}, "at least 1 token"),
        ({"update_interval": 0}, "at least 1 token"),
        ({"trained_range": 0}, "at least 1 position"),
        ({"sinks": -1}, "must not be negative"),
        ({"recent_share": 1.5}, "must lie in 0..1"),
        ({"budget": 8, "sinks": 5}, "raise the budget"),
    ],
)
def test_bad_settings_are_explained(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        WorkingMemoryConfig(**bad)
