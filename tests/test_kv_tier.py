"""The KV tier: keys and values of segments as they were read, kept, saved, and put back before a question."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from commands import assert_refused, result, run
from families import ROTARY
from readers import (
    assert_same_memory,
    ids_of,
    lively,
    reader,
    settings,
    text_of,
    uneven,
)
from tiers import MEMORIES, TEXT, TIERS, model_of
from torch import Tensor

from hiermem.errors import InputError, MemoryCorruptError, MemoryFileError, MemoryIncompatibleError
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.kv import tier as kv
from hiermem.memory.kv.quantise import FORMATS, Packed, bytes_of
from hiermem.memory.kv.recall import Recalled
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.longterm import LongTermConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.recalling import kv_tier, recall_kv
from hiermem.retrieval.files import load_directory, save_directory
from hiermem.retrieval.parts import Part

SEGMENT = 48
WHOLE = {"keep": 1.0, "dtype": "float32"}
NEAR = {"atol": 2e-5, "rtol": 1e-4}


def with_kv(
    kv: dict[str, Any] | None,
    family: str = "llama",
    change: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **working: Any,
) -> HierMemModel:
    """A model whose memories have the tier with these settings, or do without."""
    config = settings(**working)
    config.longterm = replace(config.longterm, tiers={} if kv is None else {"kv": kv})
    return reader(family, type(config)(**config.settings() | (change or {})), dtype)


def read(model: HierMemModel, words: int = 120) -> MemoryState:
    return model.read(text_of(words), progress=False)


def segment_ids(memory: MemoryState, *segments: int) -> Tensor:
    """Token ids of some segments, ``[1, n]`` int64."""
    return torch.cat([memory.records()[segment].ids for segment in segments]).long()[None]


def logits_after(model: HierMemModel, recalled: Recalled, ids: Tensor) -> Tensor:
    """Logits of a question over what was recalled."""
    with torch.inference_mode():
        return model.reader.logits(recalled.working.copy(), ids)


def logits_of(model: HierMemModel, before: Tensor, ids: Tensor) -> Tensor:
    """Logits of a question over a full cache of what was read before."""
    memory = model.new_working_memory(replace(model.config.working, policy="full_cache"))
    with torch.inference_mode():
        model.reader.read(memory, before)
        return model.reader.logits(memory, ids)


def assert_same_tier(one: KVTier, other: KVTier, near: bool = False) -> None:
    """Equal tokens of all segments; ``near``: but for rounding."""
    ours, theirs = ((tier.tensors(), *tier.series()) for tier in (one, other))
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.keys() == its.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], its[name], **(NEAR if near else {"atol": 0, "rtol": 0}))


# ---- what is kept


@pytest.mark.parametrize("policy", ["keen", "lively", "window", "full_cache", "segment_local"])
def test_each_head_keeps_its_share_of_each_segment(policy: str) -> None:
    memory = read(with_kv({"keep": 0.25}, policy=policy))
    tier = kv_tier(memory)
    assert len(tier) == memory.tokens // SEGMENT > 3
    assert [len(bank.heads) for bank in tier.banks] == [6]
    for segment in range(len(tier)):
        (tokens,) = tier.tokens_of(segment)
        # of 16 tokens between two decisions 4, but of the first 14, since two are sinks
        assert tokens.places.shape == (6, 12)
        assert (tokens.places.view(6, 3, -1) // 16 == torch.arange(3).view(1, 3, 1)).all()
        assert tokens.keys.numbers.dtype == torch.int8 and tokens.keys.numbers.shape == (6, 12, 8)
    assert tier.sinks is not None and tier.sinks[0].places.tolist() == [[0, 1]] * 6
    assert tier.tokens_of(0)[0].places.min() >= 2
    assert tier.bytes_per_token == tier.nbytes / (memory.tokens // 16 * 16)


def test_a_policy_that_tells_tokens_apart_keeps_its_best() -> None:
    """Those that it then evicts are not among them, as long as they are as few as that."""
    model = with_kv({"keep": 0.25}, policy="l2_norm")
    whole = kv_tier(read(with_kv(WHOLE, policy="l2_norm")))
    memory = read(model)
    places = kv_tier(memory).tokens_of(1)[0].places
    norms = whole.tokens_of(1)[0].keys.unpacked().norm(dim=-1)
    for head in range(6):
        for begin in range(0, SEGMENT, 16):
            best = norms[head, begin : begin + 16].bfloat16().float().topk(4, largest=False).values.max()
            kept = places[head][(places[head] >= begin) & (places[head] < begin + 16)].long()
            assert (norms[head, kept].bfloat16().float() <= best).all()


@pytest.mark.parametrize("policy", ["window", "full_cache", "segment_local"])
def test_without_scores_the_newest_are_kept(policy: str) -> None:
    places = kv_tier(read(with_kv({"keep": 0.25}, policy=policy))).tokens_of(1)[0].places
    assert places.tolist() == [[12, 13, 14, 15, 28, 29, 30, 31, 44, 45, 46, 47]] * 6


@pytest.mark.parametrize(("segment", "interval"), [(48, 32), (16, 48), (32, 32)])
def test_segments_and_decisions_need_not_meet(segment: int, interval: int) -> None:
    config = {"segment": segment, "chunk": 16}
    memory = read(with_kv(WHOLE, change=config, update_interval=interval, budget=24))
    tier = kv_tier(memory)
    assert len(tier) == memory.tokens // segment
    for number in range(len(tier)):
        first = 2 if number == 0 else 0
        assert tier.tokens_of(number)[0].places.tolist() == [list(range(first, segment))] * 6


def test_reading_is_as_without_the_tier() -> None:
    """Bit for bit."""
    with_it, without = read(with_kv({})), read(with_kv(None))
    assert_same_memory(with_it, without, atol=0.0)
    for name, tensor in without.working.state_dict().items():
        assert torch.equal(with_it.working.state_dict()[name], tensor)
    assert without.working.listener is None


def test_whole_in_pieces_and_resumed_are_the_same(tmp_path: Path) -> None:
    model, text = with_kv({"keep": 0.5, "dtype": "float32"}), text_of(200)
    whole = model.read(text, progress=False)
    pieces = model.read((text[at : at + 37] for at in range(0, len(text), 37)), progress=False)
    assert_same_tier(kv_tier(whole), kv_tier(pieces))
    resumed, ids = None, torch.cat([record.ids for record in whole.records()])
    for at in range(0, len(ids), 59):
        resumed = model.read(ids[at : at + 59], resumed, progress=False)
        resumed.save(tmp_path / "memory")
        resumed = MemoryState.load(tmp_path / "memory", model)
    assert resumed is not None
    assert_same_tier(kv_tier(whole), kv_tier(resumed), near=True)


def test_a_copy_is_independent() -> None:
    model = with_kv({})
    memory = read(model)
    moment, before = memory.moment, dict(kv_tier(memory).tensors())
    model.read(text_of(60, seed=4), memory, progress=False)
    assert len(kv_tier(memory)) > len(moment.tiers[0])  # type: ignore[arg-type]
    memory.moment = moment
    after = kv_tier(memory).tensors()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)


# ---- formats


@pytest.mark.parametrize(
    ("dtype", "steps"), [("int8", 127), ("int4", 7), ("bfloat16", 256), ("float32", 1e9)]
)
def test_formats_are_off_by_a_step_at_most(dtype: str, steps: float) -> None:
    states = (
        torch.randn(3, 50, 16, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-30, 30, 50)[:, None]
    )
    states[1, 7] = 0
    packed = Packed.of(states, dtype)
    off = (packed.unpacked() - states).abs().amax(-1)
    assert (off <= states.abs().amax(-1) / steps).all()
    stored = packed.numbers[0, 0].numel() * packed.numbers.element_size() + 2 * (packed.scale is not None)
    assert bytes_of(16, dtype) == stored


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_a_document_will_take_is_known_before(dtype: str) -> None:
    model = with_kv({"dtype": dtype})
    memory = read(model, 400)
    tier = kv_tier(memory)
    sinks = sum(tensor.nbytes for name, tensor in tier.tensors().items() if name.startswith("sinks"))
    expected = tier.expected_bytes(memory.tokens, memory.working.cache)
    assert tier.nbytes - sinks == pytest.approx(expected, rel=0.05)


# ---- recall


@pytest.mark.parametrize(
    ("family", "positions"),
    [("llama", "absolute"), ("gemma3", "compact"), *((f, "distance") for f in ROTARY)],
)
def test_the_first_segment_recalled_is_as_read(family: str, positions: str) -> None:
    """All of it, not quantised, under a full cache."""
    model = with_kv(WHOLE, family, policy="full_cache", positions=positions)
    memory, question = read(model), ids_of(9)
    before = json.dumps(memory.working.bookkeeping())
    recalled = recall_kv(model.reader, memory, {0: None})
    assert recalled.positions.tolist() == list(range(SEGMENT))
    expected = logits_of(model, segment_ids(memory, 0), question)
    torch.testing.assert_close(logits_after(model, recalled, question), expected, **NEAR)
    assert json.dumps(memory.working.bookkeeping()) == before and memory.working.num_tokens[0] > SEGMENT


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "phi3"])
def test_later_segments_stand_where_the_first_stood(family: str) -> None:
    """Layer 0 sees no context: there, keys and values of any segment are those of reading it right away."""
    model = with_kv(WHOLE, family, policy="full_cache", positions="absolute")
    memory = read(model)
    recalled = recall_kv(model.reader, memory, {2: None, 1: None})
    alone = model.new_working_memory(model.config.working)
    ids = torch.cat((segment_ids(memory, 0)[:, :2], segment_ids(memory, 1, 2)), dim=1)
    with torch.inference_mode():
        model.reader.read(alone, ids)
    assert recalled.positions.tolist() == [0, 1, *range(SEGMENT, 3 * SEGMENT)]
    ours, theirs = recalled.working.caches[0], alone.caches[0]
    assert ours.positions is not None and theirs.positions is not None
    assert torch.equal(ours.positions, theirs.positions)
    for mine, its in zip(ours.held() or (), theirs.held() or (), strict=True):
        torch.testing.assert_close(mine, its, **NEAR)


def test_positions_moved_together_change_nothing() -> None:
    model = with_kv({"keep": 0.5}, policy="full_cache", positions="absolute")
    memory, question = read(model), ids_of(9)
    recalled = recall_kv(model.reader, memory, {1: None, 3: torch.arange(SEGMENT) < 20})
    near = logits_after(model, recalled, question)
    moved = recalled.working.copy()
    counts = replace(moved.frames.counts, num_tokens=(moved.num_tokens[0] + 100,))
    moved.frames = replace(moved.frames, counts=counts)
    moved.cache.layers = [
        replace(layer, positions=layer.positions + 100).turned(shape.rotary, layer.position_ids + 100)
        for layer, shape in zip(moved.cache.layers, moved.geometries, strict=True)
        if layer.positions is not None and layer.position_ids is not None
    ]
    with torch.inference_mode():
        far = model.reader.logits(moved, question)
    torch.testing.assert_close(near, far, **NEAR)


def test_chosen_tokens_stand_side_by_side() -> None:
    model = with_kv({"keep": 0.5})
    memory = read(model)
    tier, chosen = kv_tier(memory), torch.zeros(SEGMENT, dtype=torch.bool)
    chosen[4:12] = chosen[30:40] = True
    recalled = recall_kv(model.reader, memory, {2: chosen})
    offsets = chosen.nonzero().flatten()
    assert recalled.positions.tolist() == [0, 1, *(2 * SEGMENT + offsets).tolist()]
    for group, cache in zip(recalled.working.cache.head_groups, recalled.working.caches, strict=True):
        assert cache.positions is not None
        for head, held in enumerate(cache.positions[0].tolist()):
            row = tier.banks[0].heads.index((group.layer, head))
            places = [place for place in tier.tokens_of(2)[0].places[row].tolist() if chosen[place]]
            real = [position for position in held if position >= 0]
            assert recalled.positions[real].tolist() == [0, 1, *(2 * SEGMENT + place for place in places)]
    assert any(cache.ragged for cache in recalled.working.caches)
    none = recall_kv(model.reader, memory, {2: torch.zeros(SEGMENT, dtype=torch.bool)})
    assert none.positions.tolist() == [0, 1]


def test_quantised_keys_and_values_answer_nearly_as_exact_ones() -> None:
    question, logits = ids_of(9), {}
    for dtype in FORMATS:
        model = with_kv({"keep": 1.0, "dtype": dtype}, policy="full_cache", positions="absolute")
        recalled = recall_kv(model.reader, read(model), {0: None, 1: None})
        logits[dtype] = logits_after(model, recalled, question)
    exact, error = logits["float32"], {}
    for dtype, some in logits.items():
        error[dtype] = float((some - exact).norm() / exact.norm())
    assert error["float32"] == 0 < error["int8"] < 0.02 and error["bfloat16"] < 0.02
    assert error["int8"] < error["int4"] < 0.3


CASES: dict[str, Callable[[], HierMemModel]] = {
    "sliding windows": lambda: with_kv(WHOLE, "gemma3", policy="keen"),
    "mamba heads": lambda: with_kv(WHOLE, change={"mamba": MambaConfig(groups=[[0, 1], [2, 0], [2, 1]])}),
    "head shares": lambda: with_kv(WHOLE, head_shares=uneven(with_kv(None))),
    "no sinks": lambda: with_kv(WHOLE, sinks=0),
    "memory embeddings": lambda: lively(
        with_kv(WHOLE, change={"summary": SummaryConfig(tokens=2, sensory=3, width=8)})
    ),
    "half": lambda: lively(
        with_kv(
            WHOLE,
            change={"summary": SummaryConfig(tokens=2, width=8, query="half"), "segment": 16},
            policy="segment_local",
            positions="compact",
        )
    ),
    "a network's states": lambda: with_kv(WHOLE, policy="lively"),
    "bfloat16": lambda: with_kv({"keep": 1.0, "dtype": "int4"}, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_memory_keeps_and_recalls(case: str, tmp_path: Path) -> None:
    model = CASES[case]()
    memory = read(model)
    tier, segment = kv_tier(memory), memory.segment
    heads = sum(len(bank.heads) for bank in tier.banks)
    assert heads == (3 if case == "mamba heads" else 6)
    for number in range(1, len(tier)):
        assert tier.tokens_of(number)[0].places.tolist() == [list(range(segment))] * heads
    recalled = recall_kv(model.reader, memory, {1: None, 3: torch.arange(segment) % 3 > 0})
    full = replace(memory.working.config, policy="full_cache", head_shares=None)
    again = recall_kv(model.reader, memory, {1: None}, full)
    for one in (recalled, again):
        logits = logits_after(model, one, ids_of(70))  # decisions among them
        assert logits.isfinite().all()
    memory.save(tmp_path / "memory")
    loaded = MemoryState.load(tmp_path / "memory", model)
    assert_same_tier(kv_tier(loaded), tier)
    for one in (memory, loaded):
        model.read(text_of(50, seed=9), one, progress=False)
    assert_same_tier(kv_tier(loaded), kv_tier(memory))
    assert MemoryState.verify(tmp_path / "memory") == []


def test_a_form_of_the_cache_is_filled_too() -> None:
    from test_extending import Int8Cache

    model = with_kv(WHOLE, policy="keen")
    model.adapter.geometries = tuple(replace(shape, cache=Int8Cache()) for shape in model.adapter.geometries)
    recalled = recall_kv(model.reader, read(model), {1: None})
    assert all(type(cache) is Int8Cache for cache in recalled.working.caches)
    assert logits_after(model, recalled, ids_of(9)).isfinite().all()


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"keep": 0.0}, "a share above 0 and up to 1, not 0.0"),
        ({"keep": 1.5}, "a share above 0 and up to 1, not 1.5"),
        ({"keep": "all"}, "must be a number, not 'all'"),
        ({"dtype": "int2"}, "no dtype 'int2': choose one of float32, bfloat16, int8, int4"),
        ({"group": 3}, "no setting 'group': it takes keep, dtype"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        LongTermConfig(tiers={"kv": settings})


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_learned_positions_are_refused(family: str) -> None:
    with pytest.raises(InputError, match="has learned positions"):
        with_kv({}, family, positions="absolute").new_memory()


def test_what_cannot_be_recalled_is_refused() -> None:
    model, plain = with_kv({}), with_kv(None)
    memory = read(model)
    last = memory.tokens // SEGMENT
    for chosen, sentence in (
        ({last: None}, f"no segment {last}: give one of 0 to {last - 1}"),
        ({-1: None}, "no segment -1"),
        ({0: torch.ones(5, dtype=torch.bool)}, "chosen by 48 truth values"),
        ({0: torch.ones(SEGMENT)}, "chosen by 48 truth values"),
    ):
        with pytest.raises(InputError, match=sentence):
            recall_kv(model.reader, memory, chosen)
    with pytest.raises(InputError, match="keeps no keys and values"):
        recall_kv(plain.reader, read(plain), {0: None})
    with pytest.raises(InputError, match="empty working memory"):
        memory.working.holding(3, [])


def test_a_compiled_backbone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_kv({})
    monkeypatch.setattr(type(model.adapter), "compiled", True)
    with pytest.raises(InputError, match="compiled backbone does not tell tiers"):
        read(model)


# ---- on disk


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of two segments."""
    monkeypatch.setattr(kv, "GROUP", 2)


def series_of(folder: Path) -> dict[str, int]:
    """Files of complete groups with their inodes."""
    return {file.name: file.stat().st_ino for file in folder.glob("tier-kv.*")}


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_memory_comes_back_the_same(dtype: str, pairs: None, tmp_path: Path) -> None:
    model = with_kv({"keep": 0.5, "dtype": dtype})
    memory = read(model)
    memory.save(tmp_path / "memory")
    loaded = MemoryState.load(tmp_path / "memory", model)
    tier = kv_tier(loaded)
    assert_same_tier(tier, kv_tier(memory))
    assert len(tier.series()) == len(tier) // 2 > 1 and loaded.nbytes == memory.nbytes
    info = json.loads((tmp_path / "memory" / "manifest.json").read_bytes())["info"]
    assert info["longterm"]["config"]["tiers"] == {"kv": {"keep": 0.5, "dtype": dtype}}
    question = ids_of(9)
    ours, theirs = (recall_kv(model.reader, one, {1: None, 2: None}) for one in (memory, loaded))
    assert torch.equal(logits_after(model, ours, question), logits_after(model, theirs, question))


def test_complete_groups_are_written_once(pairs: None, tmp_path: Path) -> None:
    model, out = with_kv({}), tmp_path / "memory"
    memory, seen = None, dict[str, int]()
    for at in range(6):
        memory = model.read(text_of(40, seed=at), memory, progress=False)
        memory.save(out)
        assert seen.items() <= series_of(out).items()
        seen = series_of(out)
        memory = MemoryState.load(out, model) if at == 3 else memory
    assert memory is not None and len(seen) > 3
    memory.save(tmp_path / "other")
    assert sorted(series_of(tmp_path / "other").values()) == sorted(seen.values())
    assert MemoryState.verify(tmp_path / "other") == []


def test_groups_leave_memory_once_they_are_saved(pairs: None, tmp_path: Path) -> None:
    model = with_kv({})
    memory = read(model)
    part, other = kv_tier(memory).series()[:2]
    before = part["0.0.keys.numbers"]
    memory.save(tmp_path / "memory")
    assert part["0.0.keys.numbers"].data_ptr() != before.data_ptr()
    assert torch.equal(part["0.0.keys.numbers"], before) and isinstance(other, Part) and other.entry
    again = model.read(text_of(60, seed=4), memory, progress=False)
    assert kv_tier(again).series()[0] is part


def of_file(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """A change of one file's tensors."""

    def changed(files: dict[str, Any]) -> None:
        tensors = dict(files[name])
        change(tensors)
        files[name] = Part(tensors) if "." in name else tensors

    return changed


def moved(tensors: dict[str, Any], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


NONSENSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file of the series is missing": lambda files: files.pop("tier-kv.0"),
    "the last file of the series is missing": lambda files: files.pop(max(files)),
    "one too many": lambda files: files.update({"tier-kv.9": files["tier-kv.0"]}),
    "another tier's": lambda files: files.update({"tier-other.0": files["tier-kv.0"]}),
    "no tier": lambda files: files.pop("tier-kv"),
    "swapped by its own": lambda files: files.update({"tier-kv": dict(files["tier-kv.0"])}),
    "a tensor is missing": of_file("tier-kv.0", lambda t: t.pop("1.0.values.scale")),
    "a tensor too many": of_file("tier-kv.0", lambda t: t.update(more=torch.ones(1))),
    "a segment too many": of_file("tier-kv.0", lambda t: t.update({"2.0.places": t["1.0.places"]})),
    "places of another type": of_file("tier-kv.0", lambda t: t.update({"0.0.places": t["0.0.places"].int()})),
    "places out of order": of_file("tier-kv.0", lambda t: t.update({"0.0.places": t["0.0.places"].flip(1)})),
    "a place outside": of_file("tier-kv.0", lambda t: t.update({"0.0.places": t["0.0.places"] - 40})),
    "a place beyond its segment": of_file(
        "tier-kv", lambda t: t.update({"segments.0.0.places": t["segments.0.0.places"] + SEGMENT})
    ),
    "a place beyond a segment of a group": of_file(
        "tier-kv.0", lambda t: t.update({"0.0.places": t["0.0.places"] + SEGMENT})
    ),
    "a scale that is no number": of_file(
        "tier-kv.0", lambda t: t.update({"0.0.keys.scale": t["0.0.keys.scale"] / 0})
    ),
    "fewer heads": of_file("tier-kv.0", lambda t: t.update({n: v[1:] for n, v in t.items() if n[0] == "0"})),
    "narrower heads": of_file(
        "tier-kv.0", lambda t: t.update({"0.0.keys.numbers": t["0.0.keys.numbers"][..., :4].contiguous()})
    ),
    "nothing seen": of_file("tier-kv", lambda t: t.update(seen=torch.tensor([0]))),
    "more seen": of_file("tier-kv", lambda t: t.update(seen=t["seen"] + 1000)),
    "less seen": of_file("tier-kv", lambda t: t.update(seen=t["seen"] - 1)),
    "a sink less": of_file(
        "tier-kv", lambda t: t.update({n: v[:, 1:].clone() for n, v in t.items() if n.startswith("sinks")})
    ),
    "no pending tokens": of_file(
        "tier-kv", lambda t: [t.pop(name) for name in list(t) if name.startswith("pending")]
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[HierMemModel, Path]:
    """A memory with two segments in a file, and its model."""
    model, folder = with_kv({"keep": 0.5}), tmp_path_factory.mktemp("saved") / "memory"
    with patch.object(kv, "GROUP", 2):
        read(model, 150).save(folder)
    return model, folder


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
def test_what_makes_no_sense_is_refused(
    change: Callable[[dict[str, Any]], object], saved: tuple[HierMemModel, Path], pairs: None, tmp_path: Path
) -> None:
    """Under a seal that fits."""
    model, folder = saved
    files, info = load_directory(folder)
    change(files)
    save_directory(tmp_path / "memory", files, info)
    with pytest.raises(MemoryFileError, match=r"does not make sense|cannot be used") as refused:
        MemoryState.load(tmp_path / "memory", model)
    assert "\n" not in str(refused.value)


def test_a_damaged_file_of_the_series_is_named(pairs: None, tmp_path: Path) -> None:
    model, out = with_kv({}), tmp_path / "memory"
    read(model).save(out)
    first, second = sorted(out.glob("tier-kv.*"))[:2]
    good = first.read_bytes()
    for bad in (good[:-1], good[:-1] + bytes([good[-1] ^ 1]), second.read_bytes()):
        first.write_bytes(bad)
        assert [first.name in problem for problem in MemoryState.verify(out)] == [True]
        with pytest.raises(MemoryCorruptError, match=first.name):
            MemoryState.load(out, model)
    first.unlink()
    assert "is missing" in MemoryState.verify(out)[0]


FIRST = MEMORIES / "kv"
"""Left of `TEXT` by the first release with the tier, two segments in a file (`python test_kv_tier.py`)."""


def of_the_first_release() -> HierMemModel:
    """The model that read it."""
    config = TIERS["plain"]()
    longterm = replace(config.longterm, tiers={"kv": {"keep": 0.5, "dtype": "int4"}})
    with patch.dict(
        TIERS, kv=lambda: type(config)(**config.settings() | {"longterm": longterm, "segment": 16})
    ):
        return model_of("kv")


def test_a_memory_of_the_first_release_loads_and_goes_on(
    pairs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_the_first_release()
    known = load_directory(FIRST)[1]["fingerprint"]
    monkeypatch.setattr(model, "fingerprint", lambda *_, **__: known)  # of another release of torch
    assert MemoryState.verify(FIRST) == []
    memory, fresh = MemoryState.load(FIRST, model), model.read(TEXT, progress=False)
    assert memory.text == TEXT and len(kv_tier(memory).series()) > 0
    for segment in range(len(kv_tier(fresh))):
        (ours,), (theirs,) = (kv_tier(one).tokens_of(segment) for one in (memory, fresh))
        assert torch.equal(ours.places, theirs.places)
        for mine, its in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            step = 2 * its.scale.float().max().item() if its.scale is not None else 0.0
            torch.testing.assert_close(mine.unpacked(), its.unpacked(), atol=step, rtol=0)
    assert len(kv_tier(model.read(text_of(60), memory, progress=False))) > len(kv_tier(fresh))


def test_a_version_without_the_tier_refuses_it(
    own_registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hiermem.memory import tier

    model = with_kv({})
    read(model).save(tmp_path / "memory")
    monkeypatch.setattr(tier.TIERS, "_names", {})
    with pytest.raises(MemoryIncompatibleError, match="Unknown tier 'kv'"):
        MemoryState.load(tmp_path / "memory", model)


# ---- the command line


def test_the_command_line_switches_it_on(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(text_of(200), "utf-8")
    sizes = ["--segment", 48, "--chunk", 16, "--budget", 24]
    common: Sequence[Any] = ["read", tmp_path / "book.txt", "--model", tiny_model, *sizes, "--out"]
    plain = result(*common, tmp_path / "plain")
    words = ["--set", "longterm.tiers.kv.keep=0.5", "--set", "longterm.tiers.kv.dtype=int4"]
    rich = result(*common, tmp_path / "rich", *words)
    for report, out in ((plain, tmp_path / "plain"), (rich, tmp_path / "rich")):
        size = sum(file.stat().st_size for file in out.iterdir())
        assert report["memory_bytes_per_token"] == size / report["tokens"]
    assert rich["memory_bytes_per_token"] > plain["memory_bytes_per_token"]
    verified = run("verify", tmp_path / "rich")
    assert f"sound and takes {rich['memory_bytes_per_token']:.0f} bytes a token" in verified.stdout.decode()
    assert result("verify", tmp_path / "rich") == {"ok": True, "problems": [], "indexed": False}
    assert result(*common, tmp_path / "rich", *words)["new_tokens"] == 0
    assert_refused(run(*common, tmp_path / "rich"), "read with other settings")
    assert_refused(run(*common, tmp_path / "new", "--set", "longterm.tiers.kw={}"), "Unknown tier 'kw'")
    assert_refused(run(*common, tmp_path / "new", "--set", "longterm.top_k=3"), "would change nothing here")
    asked = result("ask", tmp_path / "rich", "Why north?", "--model", tiny_model, "--max-new-tokens", 2)
    assert asked["sources"]


if __name__ == "__main__":
    kv.GROUP = 2
    of_the_first_release().read(TEXT, progress=False).save(FIRST)
    (FIRST / ".lock").unlink()
