"""Head shares that ship are on by default; memories without memory embeddings go on without."""

from pathlib import Path
from typing import Any

import pytest
from readers import (
    assert_same_memory,
    backbone,
    changed,
    lively,
    reader,
    settings,
    text_of,
    tokenizer,
    uneven,
)

from hiermem import eviction_weights, shipped
from hiermem.cli.reading_task import with_defaults_of
from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryIncompatibleError
from hiermem.eviction_weights import EvictionWeights, resolve_eviction_weights
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel

TRAINED = SummaryConfig(tokens=2, width=8)
TEXT, MORE = text_of(70), text_of(30, seed=9)
QUESTION = "Where did the captain sail?"


def with_memory() -> HierMemModel:
    return lively(reader(config=changed(settings(), summary=TRAINED)))


@pytest.fixture
def ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where head shares ship for the tiny backbone, by the name smollm2."""
    folder = tmp_path / "smollm2"
    folder.mkdir()
    EvictionWeights(uneven(reader()), None).save(folder)
    for module in (eviction_weights, shipped):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    return folder


def around(name: str = "smollm2", **changes: Any) -> HierMemModel:
    """The model of a configuration around the tiny backbone, by a name."""
    given = {"evictor": "shipped", "backbone": name} | changes
    return HierMemModel(changed(settings(policy="attention"), **given), backbone(), tokenizer()).eval()


# ---- what a configuration takes


def test_head_shares_that_ship_are_on_by_default(ships: Path) -> None:
    assert HierMemConfig.preset("full").evictor == "shipped"
    model, plain = around(), around("some/backbone")
    assert model.config.working.head_shares == [list(row) for row in uneven(model)]
    assert model.config.evictor == "none"
    assert plain.config.working.head_shares is None and plain.config.evictor == "auto"
    assert HierMemConfig.preset("full").without_shipped().evictor == "auto"


def test_head_shares_ship_for_attention_alone(ships: Path) -> None:
    for policy in ("window", "h2o", "l2_norm", "full_cache"):
        assert resolve_eviction_weights("shipped", "smollm2", policy) is None
    assert resolve_eviction_weights("auto", "smollm2", "attention") is None
    found = resolve_eviction_weights("shipped", "smollm2", "attention")
    assert found is not None and found.shares is not None


def test_a_saved_model_keeps_its_own(ships: Path, tmp_path: Path) -> None:
    """Memory embeddings and head shares, whatever ships, also where a preset is given."""
    model, name = tmp_path / "model", str(tmp_path / "backbone")
    backbone().save_pretrained(name)
    tokenizer().save_pretrained(name)
    own = [[2.0, 1.0], [1.0, 1.0], [1.0, 2.0]]
    given = settings(policy="attention", head_shares=own)
    around(name, summary=TRAINED, working=given.working).save_pretrained(model)
    for config in (None, HierMemConfig.preset("full")):
        again = HierMemModel.from_pretrained(model, config)
        assert again.config.summary == TRAINED and again.config.working.head_shares == own
        assert again.config.evictor == "auto"
    bare = HierMemModel.from_pretrained(model, HierMemConfig.preset("bare"))
    assert bare.summary is None and bare.config.summary == SummaryConfig(0)


def test_settings_of_memory_embeddings_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="change nothing without: give summary"):
        SummaryConfig(last=0)
    assert SummaryConfig(0, last=0).tokens == 0


# ---- memories that were read without memory embeddings


def test_a_memory_without_embeddings_goes_on_without_in_a_model_that_has_them(tmp_path: Path) -> None:
    """As in the model without: read, saved, loaded, asked and read on."""
    plain, model = reader(), with_memory()
    memory = plain.read(TEXT)
    memory.save(tmp_path / "memory")
    again = MemoryState.load(tmp_path / "memory", model)
    assert not again.recurrent
    assert model.ask(again, QUESTION).text == plain.ask(memory, QUESTION).text
    assert_same_memory(model.read(MORE, again), plain.read(MORE, memory), atol=0.0)
    again.save(tmp_path / "memory")
    assert_same_memory(MemoryState.load(tmp_path / "memory", plain), memory, atol=0.0)


def test_a_memory_with_embeddings_needs_them(tmp_path: Path) -> None:
    model = with_memory()
    memory = model.read(TEXT)
    memory.save(tmp_path / "memory")
    assert memory.recurrent and MemoryState.load(tmp_path / "memory", model).recurrent
    with pytest.raises(MemoryIncompatibleError, match="not read with this model's summaries"):
        MemoryState.load(tmp_path / "memory", reader())


def test_a_model_with_memory_embeddings_indexes_without_them(tmp_path: Path) -> None:
    plain, model = reader(), with_memory()
    expected = plain.index(TEXT)
    for begun in (None, model.new_memory()):
        memory = model.index(TEXT, begun)
        assert not memory.recurrent and "summaries" not in memory.fingerprint
        assert_same_memory(memory, expected, atol=0.0)
    memory.save(tmp_path / "memory")
    for other in (plain, model):
        again = MemoryState.load(tmp_path / "memory", other)
        assert other.ask(again, QUESTION).text == plain.ask(expected, QUESTION).text
    with pytest.raises(InputError, match="This memory was read"):
        model.index(MORE, model.read(TEXT))


def test_a_reading_that_was_begun_before_head_shares_shipped_goes_on(tmp_path: Path) -> None:
    """None were the default then; where some are asked for, or others were read with, nothing changes."""
    config, none = changed(settings(policy="attention"), evictor="shipped"), settings(policy="attention")
    own = settings(policy="attention", head_shares=[[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]])

    def found(memory: str, *, shares: bool = True) -> str:
        kept = with_defaults_of(tmp_path / memory, config, keys=True, shares=shares)
        assert kept.working == config.working
        return kept.evictor

    assert with_defaults_of(tmp_path / "none", config, keys=True, shares=True) is config
    for name, made_with in (("none", none), ("own", own)):
        reader(config=made_with).read(TEXT).save(tmp_path / name)
    assert (found("none"), found("none", shares=False), found("own")) == ("auto", "shipped", "shipped")
