"""Settings of every dataclass of the library are of the types that it says, or refused by name."""

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.memory.longterm import LongTermConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.policies import POLICIES
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.settings import check_settings
from hiermem.training.cma_es import StageConfig
from hiermem.training.recipes import EVOLUTIONS, TrainConfig

ROOT = Path(__file__).resolve().parent.parent


def kinds() -> Iterator[type]:
    """Every dataclass of settings, by its name; one that is new comes by itself."""
    for folder in ("hiermem", "memory", "retrieval", "training"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "Config:\n" in file.read_text("utf-8"):
                parts = [part for part in file.relative_to(ROOT).with_suffix("").parts if part != "hiermem"]
                module = import_module(".".join(["hiermem", *parts]))
                for name, kind in vars(module).items():
                    if name.endswith("Config") and is_dataclass(kind) and kind.__module__ == module.__name__:
                        yield kind  # type: ignore[misc]


KINDS = [*kinds(), *POLICIES.values()]
GIVEN = {"name": "s", "tasks": ("a",), "stages": ()}
"""Settings without a default."""


def test_all_are_found() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert {"WorkingMemoryConfig", "StoreConfig", "AskConfig", "LoraConfig", "TrainConfig"} <= names
    assert {"SpectrogramConfig", "EvolveConfig", "AttentionPolicy"} <= names and len(names) >= 24


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_a_wrong_type_is_refused_by_name(kind: type) -> None:
    own = fields(kind)  # type: ignore[arg-type]
    if kind is HierMemConfig:  # the others are of transformers
        own = tuple(one for one in own if one.name in HierMemConfig().settings())
    given = {one.name: GIVEN[one.name] for one in own if one.default is one.default_factory is MISSING}
    kind(**given)
    for one in own:
        with pytest.raises(InputError, match=rf"^{kind.__name__}\.{one.name} must be .*, not <object object"):
            kind(**{**given, one.name: object()})


@pytest.mark.parametrize(
    ("kind", "wrong", "sentence"),
    [
        (WorkingMemoryConfig, {"budget": "x"}, "WorkingMemoryConfig.budget must be a whole number, not 'x'."),
        (WorkingMemoryConfig, {"budget": True}, "budget must be a whole number, not True."),
        (WorkingMemoryConfig, {"budget": 512.0}, "budget must be a whole number, not 512.0."),
        (WorkingMemoryConfig, {"trained_range": "x"}, "must be a whole number or None, not 'x'."),
        (WorkingMemoryConfig, {"head_shares": [[1.0, None]]}, r"a number or None, not \[\[1.0, None\]\]."),
        (WorkingMemoryConfig, {"head_shares": "12"}, "entries that are each a number or None, not '12'."),
        (WorkingMemoryConfig, {"recent_share": float("nan")}, "must be a number, not nan."),
        (
            HierMemConfig,
            {"working": None},
            "HierMemConfig.working must be of the type WorkingMemoryConfig, not None.",
        ),
        (HierMemConfig, {"segment": "x"}, "HierMemConfig.segment must be a whole number, not 'x'."),
        (HierMemConfig, {"evictor": None}, "HierMemConfig.evictor must be a text, not None."),
        (HierMemConfig, {"working": {"budgets": 3}}, "WorkingMemoryConfig has no setting 'budgets'"),
        (HierMemConfig, {"format_version": "1"}, "format_version must be a whole number, not '1'."),
        (LongTermConfig, {"store": None}, "LongTermConfig.store must be of the type StoreConfig, not None."),
        (LongTermConfig, {"lexical": {"dim": "x"}}, "LexicalKeyConfig.dim must be a whole number, not 'x'."),
        (MambaConfig, {"groups": [[0, "1"]]}, r"must be .* or None, not \[\[0, '1'\]\]."),
        (MambaConfig, {"groups": [[0, 1, 2]]}, "pairs of layer and KV group"),
        (TrainConfig, {"trains": "prompt"}, "entries that are each a text, not 'prompt'."),
        (TrainConfig, {"pairs": {"seeds": 3}}, "PairConfig has no setting 'seeds'"),
    ],
)
def test_the_sentence_says_what_is_wanted(kind: type, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        kind(**wrong)


def test_what_fits_stays_as_it_was_given() -> None:
    assert WorkingMemoryConfig(recent_share=0).recent_share == 0
    assert WorkingMemoryConfig(head_shares=((1, 2),)).head_shares == [[1.0, 2.0]]
    assert MambaConfig(groups=[(1, 0), (0, 1)]).groups == [[0, 1], [1, 0]]  # type: ignore[list-item]
    assert StageConfig("s", ["a"]).tasks == ["a"]  # type: ignore[arg-type]
    assert EVOLUTIONS["small"]().stages[0].generations == 60


def test_numbers_and_arrays_of_numpy_and_torch_become_plain() -> None:
    shares: list[Any] = [np.ones((2, 2)), torch.ones(2, 2), [np.ones(2), torch.ones(2)], [[np.float32(1), 1]]]
    for given in shares:
        assert WorkingMemoryConfig(head_shares=given).head_shares == [[1.0, 1.0]] * len(given)
    number: Any = np.int64(64)
    working = WorkingMemoryConfig(budget=number, recent_share=np.float32(0.5))  # type: ignore[arg-type]
    assert type(working.budget) is int and type(working.recent_share) is float
    assert type(HierMemConfig(segment=np.int64(1024)).segment) is int  # type: ignore[arg-type]
    assert MambaConfig(groups=np.array([[1, 0]])).groups == [[1, 0]]  # type: ignore[arg-type]
    assert StageConfig("s", ("a",), sigma=np.float64(0.5)).sigma == 0.5
    near = WorkingMemoryConfig("attention", policy_settings={"near": np.int64(4), "decay": np.float32(1)})
    assert json.dumps(near.policy_settings) == '{"near": 4, "decay": 1.0}'
    with pytest.raises(InputError, match=r"budget must be a whole number, not 64\.0\."):
        WorkingMemoryConfig(budget=np.float32(64))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"budget must be a whole number, not \[1, 2\]\."):
        WorkingMemoryConfig(budget=torch.tensor([1, 2]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"near of the policy attention must be a whole number, not 1\.5\."):
        WorkingMemoryConfig("attention", policy_settings={"near": np.float64(1.5)})


@dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Outer:
    inner: Inner | None = None
    others: tuple[str, ...] = ()
    noted: dict[str, int] = field(default_factory=dict)
    either: int | str = 0
    anything: Any = None

    def __post_init__(self) -> None:
        check_settings(self)


def test_parts_may_be_dicts() -> None:
    outer = Outer(inner={"size": 5}, others=["a"], noted={"b": 1}, either="c")  # type: ignore[arg-type]
    assert outer.inner == Inner(5) and outer.others == ["a"] and outer.noted == {"b": 1}
    assert Outer(either=4, anything=object()).inner is None
    with pytest.raises(InputError, match=r"Outer\.inner must be of the type Inner or None, not 3\."):
        Outer(inner=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Outer.either must be a whole number or a text, not \[\]."):
        Outer(either=[])  # type: ignore[arg-type]


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(InputError, match=r"^.{1,200}$"):
        WorkingMemoryConfig(budget="x" * 10_000)  # type: ignore[arg-type]
