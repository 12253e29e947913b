"""Policies by name, with settings by name: from Python, from the command line and from files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from commands import assert_refused, run
from readers import backbone, over, reader, settings, text_of, tokenizer
from torch import Tensor

from hiermem.cli import options
from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.result_log import ResultLog
from hiermem.memory.policies import POLICIES, AttentionPolicy, CacheStats, EvictionPolicy
from hiermem.memory.state import MemoryState
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.model import HierMemModel
from hiermem.registry import Registry
from hiermem.retrieval.files import load_directory, save_directory


def test_settings_reach_the_policy() -> None:
    model = over(backbone(), policy="attention", policy_settings={"decay": 0.5, "near": 2})
    assert model.new_recurrent_memory().policy == AttentionPolicy(sinks=2, decay=0.5, near=2)


def test_whole_numbers_become_floats() -> None:
    whole, real = ({"decay": decay} for decay in (1, 1.0))
    assert WorkingMemoryConfig("attention", policy_settings=whole).policy_settings == real
    assert type(WorkingMemoryConfig("attention", policy_settings=whole).policy_settings["decay"]) is float


@pytest.mark.parametrize(
    ("policy", "given", "sentence"),
    [
        ("attention", {"decy": 1.0}, "The policy attention has no setting 'decy': it takes decay, near."),
        ("window", {"decay": 1.0}, "The policy window has no setting 'decay': it takes none."),
        ("attention", {"sinks": 1}, "no setting 'sinks'"),
        ("namm", {"network": None}, "no setting 'network'"),
        ("attention", {"decay": "x"}, "decay of the policy attention must be a number, not 'x'"),
        ("attention", {"decay": float("nan")}, "must be a number, not nan"),
        ("attention", {"near": 1.5}, "near of the policy attention must be a whole number, not 1.5"),
        ("attention", {"near": True}, "must be a whole number, not True"),
        ("attention", {"decay": 2.0}, r"must lie in 0..1"),
        ("attention", ["decay"], "policy_settings must be of the type dict"),
        ("no such", {}, "Unknown policy 'no such': choose one of full_cache, window"),
    ],
)
def test_what_a_policy_does_not_take_is_refused(policy: str, given: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        WorkingMemoryConfig(policy, policy_settings=given)
    with pytest.raises(InputError, match=sentence):
        HierMemConfig(working={"policy": policy, "policy_settings": given})


def test_another_policy_leaves_the_settings_behind() -> None:
    config = settings(policy="attention", policy_settings={"decay": 0.5})
    assert config.with_working(budget=30).working.policy_settings == {"decay": 0.5}
    assert config.with_working(policy="window").working.policy_settings == {}
    changed = config.with_working(policy="keen", policy_settings={"near": 4}).working
    assert (changed.policy, changed.policy_settings) == ("keen", {"near": 4})


# ---- names


@pytest.mark.parametrize(("old", "new"), [("none", "full_cache"), ("forget", "segment_local")])
def test_old_names_are_accepted(old: str, new: str, tmp_path: Path) -> None:
    assert WorkingMemoryConfig(old) == WorkingMemoryConfig(new)
    assert settings().with_working(policy=old).working.policy == new
    assert options.configuration("smollm2", None, old).working.policy == new
    HierMemConfig(working=WorkingMemoryConfig(new)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["working"]["policy"] = old
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert HierMemConfig.from_pretrained(tmp_path).working.policy == new


@pytest.mark.parametrize(("old", "new"), [("none", "full_cache"), ("forget", "segment_local")])
def test_a_memory_with_an_old_name_goes_on(old: str, new: str, tmp_path: Path) -> None:
    model = reader(config=settings(policy=new, positions="compact", trained_range=200))
    model.read(text_of(40), progress=False).save(tmp_path / "memory")
    files, info = load_directory(tmp_path / "memory")
    assert info["working"]["config"]["policy"] == new and "policy_settings" not in info["working"]["config"]
    info["working"]["config"]["policy"] = old
    save_directory(tmp_path / "memory", files, info)
    assert MemoryState.load(tmp_path / "memory", model).working.config == model.config.working


def test_results_with_an_old_name_are_taken_up(tmp_path: Path) -> None:
    def known(policy: str) -> dict[str, Any]:
        return {"task": "t", "policy": policy, "working": {"policy": policy, "budget": 3}}

    ResultLog(tmp_path / "r.json", known("none")).report(lambda _: {"metrics": {"m": 1.0}, "n": 1}, "c")
    again = ResultLog(tmp_path / "r.json", known("full_cache")).report(lambda _: pytest.fail("measured"), "c")
    assert again["metrics"] == {"m": 1.0}
    again = ResultLog(tmp_path / "r.json", known("none")).report(lambda _: pytest.fail("measured"), "c")
    assert again["metrics"] == {"m": 1.0}
    with pytest.raises(InputError, match="other settings"):
        ResultLog(tmp_path / "r.json", known("window")).report(lambda _: {}, "c")


def test_a_name_is_taken_once() -> None:
    registry: Registry[EvictionPolicy] = Registry("policy", EvictionPolicy)

    class Named(AttentionPolicy):
        name: ClassVar[str] = "first"
        aliases: ClassVar[tuple[str, ...]] = ("former",)

    class Again(AttentionPolicy):
        name: ClassVar[str] = "former"

    class Odd(AttentionPolicy):
        name: ClassVar[str] = "two words"

    @dataclass(frozen=True)
    class Untyped(AttentionPolicy):
        shares: tuple[float, ...] = ()
        name: ClassVar[str] = "untyped"

    @dataclass(frozen=True)
    class Nameless(EvictionPolicy):
        def scores(self, stats: CacheStats) -> Tensor:
            return stats.positions.float()

    @dataclass(frozen=True)
    class Scoreless(EvictionPolicy):
        name: ClassVar[str] = "scoreless"

    @dataclass(frozen=True, kw_only=True)
    class Demanding(AttentionPolicy):
        gain: float
        name: ClassVar[str] = "demanding"

    assert registry.register(Named) is Named
    wrongs: list[tuple[Any, str]] = [
        (Named, "a policy 'first' already"),
        (Again, "a policy 'former' already: give Again another name"),
        (Odd, "letters, digits and '_', not by 'two words'"),
        (Untyped, "The setting shares of Untyped is no bool, int, float or str"),
        (Nameless, "The policy Nameless has no name"),
        (Scoreless, "The policy Scoreless lacks scores"),
        (Demanding, "The setting gain of Demanding has no default"),
        (Path, "A policy is a subclass of EvictionPolicy, not <class"),
        ("window", "A policy is a subclass of EvictionPolicy, not 'window'"),
    ]
    for wrong, sentence in wrongs:
        with pytest.raises(InputError, match=sentence):
            registry.register(wrong)
    assert list(registry) == ["first"] and registry["former"] is Named


# ---- the command line


@dataclass(frozen=True)
class Typed(EvictionPolicy):
    """A policy with a setting of every type."""

    flag: bool = False
    count: int = 1
    word: str = "a"
    share: float | None = None
    name: ClassVar[str] = "typed"

    def scores(self, stats: CacheStats) -> Tensor:
        return stats.positions.float()


def test_scores_of_any_dtype_are_float32() -> None:
    @dataclass(frozen=True)
    class Whole(Typed):
        def scores(self, stats: CacheStats) -> Tensor:
            return stats.positions

    stats = CacheStats(torch.arange(6).view(1, 1, 6), torch.full((1, 1, 1), 6), {}, recent=1)
    assert torch.equal(Whole(sinks=2).protected_scores(stats), Typed(sinks=2).protected_scores(stats))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    for inside in ("_classes", "_names"):
        monkeypatch.setattr(POLICIES, inside, dict(getattr(POLICIES, inside)))
    POLICIES.register(Typed)


@pytest.mark.usefixtures("typed")
def test_values_are_read_by_their_type() -> None:
    given = ["flag=true", "count=-3", "word=x=y", "share=1e-2"]
    working = options.configuration("smollm2", None, "typed", policy_set=given).working
    assert working.policy_settings == {"flag": True, "count": -3, "word": "x=y", "share": 0.01}
    working = options.configuration("smollm2", None, "typed", policy_set=["share=none"]).working
    assert working.policy_settings == {"share": None}


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["flag=yes"], "flag of the policy typed must be True or False, not 'yes'"),
        (["count=1.5"], "must be a whole number, not '1.5'"),
        (["share=x"], "must be a number or None, not 'x'"),
        (["share=inf"], "must be a number or None, not inf"),
        (["count"], "--policy-set takes NAME=VALUE, not 'count'"),
        (["=1"], "--policy-set takes NAME=VALUE"),
        (["count=1", "count=2"], "--policy-set sets count twice"),
        (["sinks=1"], "has no setting 'sinks': it takes flag, count, word, share"),
    ],
)
def test_a_wrong_value_is_refused(given: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        options.configuration("smollm2", None, "typed", policy_set=given)


def saved_model(folder: Path, **working: Any) -> Path:
    backbone().save_pretrained(folder / "plain")
    tokenizer().save_pretrained(folder / "plain")
    model = HierMemModel.from_pretrained(folder / "plain", settings(**working), dtype="float32", device="cpu")
    model.save_pretrained(folder / "saved")
    return folder / "saved"


def test_a_saved_model_keeps_its_settings(tmp_path: Path) -> None:
    folder = saved_model(tmp_path, policy="attention", policy_settings={"decay": 0.5, "near": 3})
    model = HierMemModel.from_pretrained(folder, dtype="float32", device="cpu")
    assert model.new_memory().working.policy == AttentionPolicy(sinks=2, decay=0.5, near=3)
    for policy in (None, "attention"):
        working = options.configuration(str(folder), None, policy, policy_set=["near=4"]).working
        assert working.policy_settings == {"decay": 0.5, "near": 4}
    assert options.configuration(str(folder), None, "keen").working.policy_settings == {}


def test_a_memory_goes_on_with_its_own_settings(tmp_path: Path) -> None:
    first = reader(config=settings(policy="attention", policy_settings={"decay": 0.5}))
    first.read(text_of(60), progress=False).save(tmp_path / "memory")
    other = reader(config=settings(policy="attention", policy_settings={"decay": 0.9}))
    again = MemoryState.load(tmp_path / "memory", other)
    assert again.working.config.policy_settings == {"decay": 0.5}
    assert again.working.policy == AttentionPolicy(sinks=2, decay=0.5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("read BOOK --out OUT --policy no", "Unknown policy 'no'"),
        ("read BOOK --out OUT --policy window --policy-set decay=1", "no setting 'decay': it takes none"),
        ("read BOOK --out OUT --policy attention --policy-set decay=x", "must be a number, not 'x'"),
        ("inspect BOOK --out OUT --policy attention --policy-set decay=3", "must lie in 0..1"),
        ("bench flat --text BOOK --policy attention --policy-set decay", "NAME=VALUE, not 'decay'"),
        ("bench length --text BOOK --policy attention --policy-set far=1", "no setting 'far'"),
    ],
)
def test_commands_refuse_in_one_sentence(given: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(text_of(60), "utf-8")
    places = {"BOOK": str(tmp_path / "book.txt"), "OUT": str(tmp_path / "out")}
    assert_refused(run(*(places.get(word, word) for word in given.split())), sentence)


def test_a_memory_is_asked_with_the_policy_that_read_it(tmp_path: Path) -> None:
    folder, memory = saved_model(tmp_path, policy="attention"), tmp_path / "memory"
    model = HierMemModel.from_pretrained(
        folder, settings(policy="attention", policy_settings={"decay": 0.5}), dtype="float32", device="cpu"
    )
    model.read(text_of(60), progress=False).save(memory)
    ask = ("ask", str(memory), "Who?", "--model", str(folder), "--device", "cpu", "--policy", "attention")
    assert_refused(run(*ask), "other settings of the policy attention: leave --policy-set")
