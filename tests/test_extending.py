"""Methods added from outside, each a class and one line: chosen by name, saved, loaded and asked.

Every class stands in this file alone, as it would in a user's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from commands import assert_refused, result, run
from readers import backbone, ids_of, over, reader, settings, text_of
from torch import Tensor
from torch.nn import functional as F

from hiermem.asking import recall
from hiermem.cli import options
from hiermem.errors import InputError, MemoryCorruptError, MemoryIncompatibleError
from hiermem.eval.methods import Method, register_method
from hiermem.eval.methods.passages import Index, Passages
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, table
from hiermem.eval.tasks import Task, option, register
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.longterm import LongTermConfig, LongTermMemory, SegmentRecord
from hiermem.memory.policies import POLICIES, CacheStats, EvictionPolicy, register_policy
from hiermem.memory.records import Hit
from hiermem.memory.state import MemoryState
from hiermem.memory.tensor_state import TensorSpec
from hiermem.memory.tier import EvictedTokens, Tier, register_tier
from hiermem.model import HierMemModel
from hiermem.retrieval.files import load_directory, save_directory
from hiermem.retrieval.keys import (
    Keyed,
    LexicalKeyConfig,
    Question,
    SearchKey,
    register_search_key,
)

# ---- what is added


@dataclass(frozen=True)
class SnapKVPolicy(EvictionPolicy):
    """Attention of the last 64 queries before a decision, pooled over neighbours (SnapKV, arXiv 2404.14469).

    Attributes:
        pool: width of the pooling, odd.
    """

    pool: int = 5

    name: ClassVar[str] = "snapkv"
    num_queries: ClassVar[int] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool < 1 or self.pool % 2 == 0:
            raise InputError(f"The pooling must be odd and at least 1 wide, not {self.pool}.")

    def scores(self, stats: CacheStats) -> Tensor:
        received = self.attention(stats).mean(dim=(2, 3))  # [B, G, T]
        return F.avg_pool1d(received, self.pool, stride=1, padding=self.pool // 2)

    def attention(self, stats: CacheStats) -> Tensor:
        """Of the last queries to the cached tokens, ``[B, G, R, n, T]``."""
        assert stats.queries is not None and stats.keys is not None
        queries, keys = stats.queries.float(), stats.keys.float().unsqueeze(2)
        n = queries.shape[3]
        places = stats.num_tokens.view(-1, 1, 1, 1, 1) - n + torch.arange(n).view(-1, 1)
        positions = stats.positions[:, :, None, None]
        logits = queries @ keys.transpose(3, 4) / queries.shape[-1] ** 0.5
        seen = (positions >= 0) & (positions <= places)
        weights = logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(dim=-1)
        return weights * (places >= 0)  # before the document there are none


@dataclass(frozen=True)
class KeyDiffPolicy(EvictionPolicy):
    """Keeps keys that differ from the mean of all (KeyDiff, arXiv 2504.15364).

    Attributes:
        centred: whether the mean is of keys of length 1.
    """

    centred: bool = True

    name: ClassVar[str] = "keydiff"

    def scores(self, stats: CacheStats) -> Tensor:
        assert stats.keys is not None
        keys = stats.keys.float()
        keys = F.normalize(keys, dim=-1) if self.centred else keys
        there = (stats.positions >= 0).unsqueeze(-1)
        mean = (keys * there).sum(2, keepdim=True) / there.sum(2, keepdim=True)
        return -F.cosine_similarity(keys, mean, dim=-1)


@dataclass
class DenseKey(SearchKey):
    """Random vectors of character trigrams, added up, less the mean of all segments.

    Attributes:
        size: width of the key.
        seed: of the vectors.
    """

    size: int = 64
    seed: int = 0

    name: ClassVar[str] = "letters"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._total, self._count = torch.zeros(self.size), 0

    @property
    def width(self) -> int:
        return self.size

    @property
    def digest(self) -> str:
        return sha256(f"trigrams {self.seed}".encode()).hexdigest()[:16]

    def _vector(self, text: str) -> Tensor:
        trigrams = {text.lower()[at : at + 3] for at in range(max(len(text) - 2, 0))}
        total = torch.zeros(self.size)
        for trigram in sorted(trigrams):
            seed = int.from_bytes(sha256(f"{self.seed} {trigram}".encode()).digest()[:4], "little")
            total += torch.randn(self.size, generator=torch.Generator().manual_seed(seed))
        return F.normalize(total, dim=0)

    def document_keys(self, records: Sequence[Keyed]) -> Tensor:
        vectors = [self._vector(record.text) for record in records]
        return torch.stack(vectors) if vectors else torch.zeros(0, self.size)

    def observe(self, records: Sequence[Keyed]) -> None:
        self._total = self._total + self.document_keys(records).sum(0)
        self._count += len(records)

    def query_key(self, question: Question) -> Tensor:
        query = self._vector(question.text)
        mean = F.normalize(self._total, dim=0)
        return query - (query @ mean) * mean

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self._total, "count": torch.tensor([self._count])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state.keys() != {"total", "count"} or state["total"].shape != (self.size,):
            raise ValueError("these are no statistics of such a key")
        self._total, self._count = state["total"], int(state["count"])


@dataclass
class EvictedKVTier(Tier):
    """Keys and values that the working memory has evicted; recalls the segments that lost most.

    Attributes:
        least: tokens that a segment must have lost.
    """

    least: int = 1
    kept: dict[int, tuple[EvictedTokens, ...]] = field(default_factory=dict, init=False)

    name: ClassVar[str] = "evicted_kv"
    wants_evicted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.records: tuple[SegmentRecord, ...] = ()

    def write(self, records: Sequence[SegmentRecord]) -> None:
        self.records = (*self.records, *records)

    def evicted(self, layer: int, tokens: EvictedTokens) -> None:
        self.kept = {**self.kept, layer: (*self.kept.get(layer, ()), tokens)}

    def positions(self, layer: int, head: int) -> list[int]:
        """True positions of all that a KV head has lost, where each head keeps its own cache."""
        lost: list[int] = []
        for tokens in self.kept.get(layer, ()):
            lost += [place for place in tokens.positions[0, head].tolist() if place >= 0]
        return lost

    def recall(self, question: Question, k: int) -> list[Hit]:
        hits = []
        for segment, record in enumerate(self.records):
            places = range(record.first_token, record.first_token + len(record.ids))
            lost = sum(place in places for place in self.positions(0, 0))
            if lost >= self.least:
                hits.append(Hit(segment, float(lost), record))
        return sorted(hits, key=lambda hit: -hit.score)[:k]

    def copy(self) -> "EvictedKVTier":
        twin = replace(self)
        twin.kept, twin.records = self.kept, self.records
        return twin

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{layer}.{at}.{name}": getattr(tokens, name)
            for layer, several in self.kept.items()
            for at, tokens in enumerate(several)
            for name in ("keys", "values", "positions", "position_ids")
        }

    def load(self, tensors: Mapping[str, Tensor], records: Sequence[SegmentRecord]) -> None:
        places: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, at, kind = name.split(".")
            places.setdefault((int(layer), int(at)), {})[kind] = tensor
        self.records = tuple(records)
        for layer, at in sorted(places):
            parts = places[layer, at]
            if parts.keys() != {"keys", "values", "positions", "position_ids"}:
                raise ValueError("evicted tokens lack something")
            self.evicted(layer, EvictedTokens(slice(None), **parts))


@dataclass(frozen=True)
class Int8Cache(LayerCache):
    """Keys and values in eight bits, each token's under a scale of its own.

    Attributes:
        key_scale: ``[B, G, T, 1]`` in the backbone's dtype.
        value_scale: ``[B, G, T, 1]``, too.
    """

    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    def held(self) -> tuple[Tensor, Tensor] | None:
        if self.keys is None or self.values is None:
            return None
        assert self.key_scale is not None and self.value_scale is not None
        return self.keys * self.key_scale, self.values * self.value_scale

    def packed(self, keys: Tensor, values: Tensor) -> dict[str, Any]:
        (eight, scale), (eight_values, value_scale) = map(eight_bits, (keys, values))
        return {"keys": eight, "key_scale": scale, "values": eight_values, "value_scale": value_scale}

    @classmethod
    def specs(cls, heads: int, widths: tuple[int, int], dtype: torch.dtype, size: str) -> dict[str, Any]:
        specs = super().specs(heads, widths, torch.int8, size)
        scale = TensorSpec(dtype, (1, heads, size, 1))
        return specs | {"key_scale": scale, "value_scale": scale}


def eight_bits(states: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 and what they are multiplied by."""
    scale = states.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return (states / scale).round().to(torch.int8), scale


@dataclass(frozen=True, kw_only=True)
class CountWords(Task):
    """How many words of a text are in passages that a question recalls.

    Example:

        hiermem eval count-words --text book.txt --question "Who was the captain?"
    """

    name = "count-words"
    title = "Words in passages"
    model_options = ("policy", "policy_set", "budget", "chunk", "segment")

    text: Path = option(help="Text file.")
    question: str = option("Who was the captain?", help="What is asked.")

    def load(self, config: Any) -> str:
        return self.text.read_text("utf-8")

    def texts(self, data: str) -> list[str]:
        return [data]

    def rows(self, model: HierMemModel, data: str, log: ResultLog) -> dict[str, Any]:
        row = log.row(self.question, self.shown, model, data)
        return {"metrics": row, "rows": [row], "n": 1}

    def shown(self, model: HierMemModel, data: str) -> dict[str, Any]:
        prepared = model.prepare(model.read(data, progress=False), self.question)
        return {"words": sum(len(source.text.split()) for source in prepared.sources)}

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        return table(["words"], [[report["metrics"]["words"]] for report in reports])


class LongestWords(Passages):
    """Passages with the longest words, whatever is asked."""

    name: ClassVar[str] = "longest-words"

    def index(self, texts: Sequence[str]) -> Index:
        lengths = np.array([max(map(len, text.split())) for text in texts], dtype=float)
        return SimpleNamespace(scores=lambda question: lengths)


@pytest.fixture(autouse=True)
def added(own_registries: None) -> None:
    """Each method registered by its one line, for the time of a test."""
    register_policy(SnapKVPolicy)
    register_policy(KeyDiffPolicy)
    register_search_key(DenseKey)
    register_tier(EvictedKVTier)
    register(CountWords)
    register_method(LongestWords)


def assert_read_saved_loaded_and_asked(model: HierMemModel, folder: Path) -> MemoryState:
    """The whole way of a document; the memory as it was loaded."""
    memory, question = model.read(text_of(200), progress=False), "Why did Orion sail north?"
    memory.save(folder / "memory")
    again = MemoryState.load(folder / "memory", model)
    assert MemoryState.verify(folder / "memory") == []
    answer = model.ask(memory, question, max_new_tokens=8)
    assert answer.sources and model.ask(again, question, max_new_tokens=8) == answer
    more = text_of(40, seed=5)
    for one in (memory, again):
        model.read(more, one, progress=False)
    assert model.ask(again, question, max_new_tokens=8) == model.ask(memory, question, max_new_tokens=8)
    return again


# ---- eviction policies


@pytest.mark.parametrize(
    ("policy", "own"),
    [
        ("snapkv", {"pool": 3}),
        ("snapkv", {}),
        ("keydiff", {"centred": False}),
    ],
)
@pytest.mark.parametrize("positions", ["distance", "compact"])
def test_a_policy(policy: str, own: dict[str, Any], positions: str, tmp_path: Path) -> None:
    config = settings(policy=policy, policy_settings=own, positions=positions)
    memory = assert_read_saved_loaded_and_asked(reader(config=config), tmp_path)
    assert memory.working.policy == POLICIES[policy](sinks=2, **own)
    assert memory.working.cache.tokens <= 24 + 16


def test_a_policy_from_the_command_line() -> None:
    working = options.configuration("smollm2", None, "snapkv", policy_set=["pool=7"]).working
    assert working.new_policy() == SnapKVPolicy(sinks=4, pool=7)
    with pytest.raises(InputError, match="must be odd"):
        options.configuration("smollm2", None, "snapkv", policy_set=["pool=4"])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt-neox"])
def test_queries_and_keys_give_the_attention_of_the_backbone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a decision after 48 tokens in two chunks, of which nothing was evicted before."""
    plain, ids, seen = backbone(family), ids_of(48), list[Tensor]()
    attention = SnapKVPolicy.attention

    def noted(policy: SnapKVPolicy, stats: CacheStats) -> Tensor:
        seen.append(attention(policy, stats))
        return seen[-1]

    monkeypatch.setattr(SnapKVPolicy, "attention", noted)
    with torch.no_grad():
        over(plain, 24, policy="snapkv", budget=24, update_interval=48)(ids)
        plain.set_attn_implementation("eager")
        expected = plain(ids, output_attentions=True).attentions
    assert len(seen) == len(expected)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours.flatten(1, 2)[:, :, -48:], theirs, atol=1e-5, rtol=1e-4)


# ---- search keys


def with_keys(keys: dict[str, dict[str, Any]]) -> HierMemModel:
    config = settings()
    config.longterm = replace(config.longterm, keys=keys)
    return reader(config=config)


@pytest.mark.parametrize(
    "keys",
    [{"letters": {"size": 48}, "lexical": {}}, {"lexical": {"weight": 0.5}, "letters": {"weight": 3.0}}],
)
def test_a_search_key(keys: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    memory = assert_read_saved_loaded_and_asked(with_keys(keys), tmp_path)
    size = keys["letters"].get("size", 64)
    assert memory.longterm.store.keys.shape == (len(memory.longterm.records), 256 + size)


def test_a_search_key_finds_what_words_do_not() -> None:
    texts = ("The captain was called Ahab.", "Salt stood in the hold.", "Her compass pointed north.")
    for keys, found in (({"letters": {}}, 2), ({"letters": {}, "lexical": {}}, 2)):
        memory = LongTermMemory(LongTermConfig(keys=keys, lexical=LexicalKeyConfig(dim=512)))
        memory.write([SegmentRecord(0, torch.zeros(0), 0, len(text), text) for text in texts])
        assert memory.recall(Question("Kompasses?"), 1)[0].segment == found
        assert memory.copy().recall(Question("Kompasses?"), 1) == memory.recall(Question("Kompasses?"), 1)
    weights = [{"letters": {"weight": weight}, "lexical": {"weight": 2.0}} for weight in (0.0, 5.0)]
    for keys in weights:  # of which the stored keys know nothing
        memory = LongTermMemory(LongTermConfig(keys=keys, lexical=LexicalKeyConfig(dim=512)))
        memory.write([SegmentRecord(0, torch.zeros(0), 0, len(text), text) for text in texts])
        scores = [hit.score for hit in memory.recall(Question("Ahab"), 3)]
        parts = [key.document_keys(memory.records) @ key.query_key(Question("Ahab")) for key in memory.keys]
        expected = keys["letters"]["weight"] * parts[0] + 2 * parts[1]
        assert scores == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)


def test_a_memory_of_another_search_key_is_refused(tmp_path: Path) -> None:
    with_keys({"lexical": {}, "letters": {}}).read(text_of(200)).save(tmp_path / "memory")
    files, info = load_directory(tmp_path / "memory")
    assert {"letters.total", "letters.count"} < files["keys"].keys()
    info["longterm"]["digests"]["search key letters"] = "0" * 16
    save_directory(tmp_path / "memory", files, info)
    with pytest.raises(MemoryIncompatibleError, match="this model's search key letters"):
        MemoryState.load(tmp_path / "memory", reader())
    del files["keys"]["letters.total"]
    save_directory(tmp_path / "memory", files, info)
    with pytest.raises(MemoryCorruptError, match="does not make sense"):
        MemoryState.load(tmp_path / "memory", reader())


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"no such": {}}, "Unknown search key 'no such': choose one of lexical, trained"),
        (
            {"letters": {"sizes": 3}},
            "The search key letters has no setting 'sizes': it takes weight, size, seed",
        ),
        ({"letters": {"size": "x"}}, "must be a whole number, not 'x'"),
        ({"letters": {"weight": -1.0}}, "must not be negative"),
        ({"lexical": {"config": 1}}, "has no setting 'config': it takes weight"),
        ({}, "needs a search key of whole segments"),
        (["letters"], "keys must be of the type dict"),
    ],
)
def test_search_keys_that_cannot_be_are_refused(keys: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        LongTermConfig(keys=keys)


# ---- tiers


def with_tier(**own: Any) -> HierMemModel:
    config = settings(policy="keen")
    config.longterm = replace(config.longterm, tiers={"evicted_kv": own})
    return reader(config=config)


def test_a_tier(tmp_path: Path) -> None:
    model = with_tier(least=2)
    memory = assert_read_saved_loaded_and_asked(model, tmp_path)
    (tier,) = memory.tiers
    assert isinstance(tier, EvictedKVTier) and tier.least == 2
    assert memory.nbytes == reader_bytes(memory) + tier.nbytes > reader_bytes(memory)


def reader_bytes(memory: MemoryState) -> int:
    """Bytes of a memory without its tiers."""
    keys = memory.longterm.store.keys
    return memory.working.nbytes + keys.numel() * keys.element_size()


def test_what_is_evicted_and_what_is_held_is_all_that_was_read() -> None:
    model = with_tier()
    memory = model.read(text_of(200), progress=False)
    (tier,) = memory.tiers
    assert isinstance(tier, EvictedKVTier)
    for group, cache in zip(memory.working.cache.head_groups, memory.working.caches, strict=True):
        assert cache.positions is not None
        for head, held in enumerate(cache.positions[0].tolist()):
            assert sorted(tier.positions(group.layer, head) + held) == list(range(memory.tokens))


def test_evicted_values_are_those_that_were_read() -> None:
    """In the first layer, where they are of the token alone."""
    model = with_tier()
    memory = model.read(text_of(200), progress=False)
    whole = model.new_working_memory(replace(model.config.working, budget=4096, policy="full_cache"))
    with torch.inference_mode():
        model.reader.read(whole, torch.cat([record.ids for record in memory.records()]).long().unsqueeze(0))
    values = whole.caches[0].values
    (tier,) = memory.tiers
    assert isinstance(tier, EvictedKVTier) and values is not None and tier.kept[0]
    for tokens in tier.kept[0]:
        for head, places in enumerate(tokens.positions[0]):
            there = places >= 0
            assert (tokens.positions[0, head].diff()[there[1:]] > 0).all()
            torch.testing.assert_close(tokens.values[0, head, there], values[0, head, places[there]])


def test_a_tier_hears_nothing_of_a_question() -> None:
    model = with_tier()
    memory = model.read(text_of(200), progress=False)
    before = memory.tiers[0].tensors().keys()
    model.config.asking.working = True
    model.ask(memory, " ".join(["Why did Orion sail north?"] * 12), max_new_tokens=40)
    assert memory.tiers[0].tensors().keys() == before


def test_segments_of_a_tier_are_recalled_after_the_others() -> None:
    model = with_tier()
    memory, plain = (one.read(text_of(400), progress=False) for one in (model, reader(config=settings())))
    question = "Why did Orion sail north?"
    first = [hit.segment for hit in recall(model.reader, plain, question, model.config.asking, 2)]
    hits = [hit.segment for hit in recall(model.reader, memory, question, model.config.asking, 2)]
    assert hits[:2] == first and len(hits) > 2 and len(set(hits)) == len(hits)


def test_a_tier_goes_back_with_its_memory() -> None:
    model = with_tier()
    memory = model.read(text_of(100), progress=False)
    moment, before = memory.moment, memory.tiers[0].tensors().keys()
    model.read(text_of(100, seed=4), memory, progress=False)
    assert memory.tiers[0].tensors().keys() > before
    memory.moment = moment
    assert memory.tiers[0].tensors().keys() == before


@pytest.mark.parametrize(
    ("tiers", "sentence"),
    [
        ({"no such": {}}, "Unknown tier 'no such': choose one of"),
        ({"evicted_kv": {"most": 3}}, "The tier evicted_kv has no setting 'most': it takes least"),
        ({"evicted_kv": {"least": 0.5}}, "must be a whole number, not 0.5"),
    ],
)
def test_tiers_that_cannot_be_are_refused(tiers: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        LongTermConfig(tiers=tiers)


def test_a_damaged_tier_is_refused(tmp_path: Path) -> None:
    model = with_tier()
    model.read(text_of(200), progress=False).save(tmp_path / "memory")
    files, info = load_directory(tmp_path / "memory")
    del files["tier-evicted_kv"]["0.0.values"]
    save_directory(tmp_path / "memory", files, info)
    with pytest.raises(MemoryCorruptError, match="evicted tokens lack something"):
        MemoryState.load(tmp_path / "memory", model)
    assert "lack something" in MemoryState.verify(tmp_path / "memory")[0]


# ---- models keep them


def test_a_saved_model_keeps_its_methods(tmp_path: Path) -> None:
    config = settings(policy="keydiff", policy_settings={"centred": False})
    config.longterm = replace(
        config.longterm, keys={"letters": {"size": 32}, "lexical": {}}, tiers={"evicted_kv": {}}
    )
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert again.working == config.working and again.longterm == config.longterm


# ---- caches of layers


def in_eight_bits(model: HierMemModel) -> HierMemModel:
    model.adapter.geometries = tuple(replace(shape, cache=Int8Cache()) for shape in model.adapter.geometries)
    return model


@pytest.mark.parametrize("policy", ["attention", "snapkv", "window"])
def test_a_form_of_the_cache(policy: str, tmp_path: Path) -> None:
    config = settings(policy=policy)
    memory = assert_read_saved_loaded_and_asked(in_eight_bits(reader(config=config)), tmp_path)
    caches = memory.working.caches
    assert all(type(cache) is Int8Cache and cache.values.dtype == torch.int8 for cache in caches)


def test_a_form_of_the_cache_rounds_what_is_held() -> None:
    ids = ids_of(48)
    with torch.no_grad():
        exact = over(backbone(), budget=24)(ids).logits
        rounded = in_eight_bits(over(backbone(), budget=24))(ids).logits
    error = (rounded - exact).norm() / exact.norm()
    assert 0 < error < 0.05


# ---- evaluation tasks


def test_a_task_with_its_command(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("The captain was Ahab. " + text_of(200), "utf-8")
    out = tmp_path / "out" / "words.json"
    sizes = ["--segment", 32, "--chunk", 16, "--budget", 24]
    command = ["eval", "count-words", "--text", tmp_path / "book.txt", "--model", tiny_model, *sizes]
    report = result(*command, "--policy", "snapkv", "--policy-set", "pool=3", "--out", out)
    assert report["metrics"]["words"] > 0 and report["config"]["working"]["policy_settings"] == {"pool": 3}
    run("report", tmp_path / "out", "--page", tmp_path / "page.md")
    assert "Words in passages" in (tmp_path / "page.md").read_text("utf-8")
    assert_refused(run(*command, "--policy", "snapkv", "--policy-set", "pool=wide"), "pool")
    assert_refused(run("eval", "count-word", "--text", "book.txt"), "count-word")


# ---- methods that are compared


def test_a_method_with_its_name_in_every_task(tiny_model: Path) -> None:
    command = ["eval", "mqar", "--model", tiny_model, "--pairs", 4, "--lengths", 400, "--limit", 1]
    command += ["--method", "longest-words"]
    report = result(*command, "--passages", 1)
    assert (report["config"]["system"], report["config"]["passages"], report["n"]) == ("longest-words", 1, 4)
    assert all(0 < row["prompt_tokens"] < 300 for row in report["examples"])
    assert_refused(run(*command, "--keep", "0.5"), "longest-words takes no --keep")
    assert_refused(run(*command, "--budget", "64"), "longest-words does not use --budget")


def test_a_method_has_a_name_of_its_own() -> None:
    with pytest.raises(InputError, match="method 'longest-words' already, LongestWords"):
        register_method(LongestWords)
    with pytest.raises(InputError, match="has no name"):
        register_method(type("Nameless", (Method,), {}))
