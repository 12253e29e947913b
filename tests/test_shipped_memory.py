"""The hierarchy that is on by default: what ships for a backbone, and memories that were read without it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from readers import assert_same_memory, backbone, lively, reader, settings, text_of, tokenizer, uneven
from safetensors.torch import save_file

from hiermem import eviction_weights, shipped, summaries
from hiermem.cli.reading_task import with_defaults_of
from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryIncompatibleError
from hiermem.eviction_weights import EvictionWeights, resolve_eviction_weights
from hiermem.memory.hmt.module import HMTModule, SummaryConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel

TRAINED = SummaryConfig(tokens=2, width=8)
TEXT, MORE = text_of(70), text_of(30, seed=9)
QUESTION = "Where did the captain sail?"


def with_memory() -> HierMemModel:
    return lively(reader(config=changed(settings(), summary=TRAINED)))


def changed(config: HierMemConfig, **changes: Any) -> HierMemConfig:
    return HierMemConfig(**config.settings() | changes)


@pytest.fixture
def ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where a trained memory and head shares ship for the tiny backbone, by the name smollm2."""
    model, folder = with_memory(), tmp_path / "smollm2"
    folder.mkdir()
    assert model.summary is not None
    metadata = {"config": json.dumps(asdict(TRAINED))}
    save_file(model.summary.state_dict(), folder / summaries.FILE, metadata)
    EvictionWeights(uneven(model), None).save(folder)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    monkeypatch.setattr(eviction_weights, "WEIGHTS", tmp_path)
    return folder


def around(name: str = "smollm2", **changes: Any) -> HierMemModel:
    """The model of a configuration around the tiny backbone, by a name."""
    given = {"evictor": "shipped", "backbone": name} | changes
    return HierMemModel(changed(settings(policy="attention"), **given), backbone(), tokenizer()).eval()


# ---- what a configuration takes


def test_what_ships_is_on_by_default(ships: Path) -> None:
    model, trained = around(), with_memory().summary
    assert trained is not None and model.summary is not None
    assert model.summary.digest == trained.digest and model.config.summary == TRAINED
    assert model.config.working.head_shares == [list(row) for row in uneven(model)]
    assert model.config.evictor == "none"
    plain = around("some/backbone")
    assert plain.summary is None and plain.config.summary == SummaryConfig(0)
    assert plain.config.working.head_shares is None and plain.config.evictor == "auto"


def test_a_configuration_that_says_which_gets_these(ships: Path) -> None:
    assert around(summary=SummaryConfig(0)).summary is None
    assert around(mamba=MambaConfig(groups=[[0, 1]])).summary is None
    fresh, trained = around(summary=TRAINED).summary, around().summary
    assert fresh is not None and trained is not None and fresh.digest != trained.digest
    without_recall = around(summary=SummaryConfig(last=0)).summary
    assert without_recall is not None and without_recall.config == replace(TRAINED, last=0)
    assert torch.equal(without_recall.first_prompt.weight, trained.first_prompt.weight)
    for preset in ("bare", "streaming"):
        config = changed(HierMemConfig.preset(preset), backbone="smollm2")
        assert HierMemModel(config, backbone(), tokenizer()).summary is None
    plain = HierMemConfig.preset("full").without_shipped()
    assert (plain.summary.tokens, plain.evictor) == (0, "auto")


def test_settings_that_would_change_nothing_are_refused(ships: Path) -> None:
    with pytest.raises(InputError, match=r"ship for smollm2 have another summary\.width: leave it out"):
        around(summary=SummaryConfig(width=16))
    with pytest.raises(InputError, match=r"ship for some/backbone, so that summary\.last would change"):
        around("some/backbone", summary=SummaryConfig(last=0))


@pytest.mark.parametrize("damage", ["cut", "other", "no settings"])
def test_a_file_that_is_damaged_is_named(ships: Path, damage: str) -> None:
    file = ships / summaries.FILE
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "other":
        save_file({"x": torch.zeros(1)}, file, {"config": json.dumps(asdict(TRAINED))})
    else:
        save_file(HMTModule(TRAINED, 32).state_dict(), file)
    with pytest.raises(InputError, match=r"memory embeddings' parameters at .* damaged .*: install hiermem"):
        around()


def test_head_shares_ship_for_attention_alone(ships: Path) -> None:
    for policy in ("window", "h2o", "l2_norm", "full_cache"):
        assert resolve_eviction_weights("shipped", "smollm2", policy) is None
    assert resolve_eviction_weights("auto", "smollm2", "attention") is None
    found = resolve_eviction_weights("shipped", "smollm2", "attention")
    assert found is not None and found.shares is not None


def test_a_saved_model_keeps_its_own(ships: Path, tmp_path: Path) -> None:
    """Whatever ships, also where a preset is given; one of an older release that had none gets none."""
    model, plain = tmp_path / "model", tmp_path / "plain"
    backbone().save_pretrained(tmp_path / "backbone")
    tokenizer().save_pretrained(tmp_path / "backbone")
    around(str(tmp_path / "backbone"), summary=TRAINED).save_pretrained(model)
    around(str(tmp_path / "backbone")).save_pretrained(plain)
    for config in (None, HierMemConfig.preset("full")):
        again = HierMemModel.from_pretrained(model, config)
        assert again.config.summary == TRAINED and again.config.evictor == "auto"
        assert HierMemModel.from_pretrained(plain, config).summary is None
    assert HierMemModel.from_pretrained(model, HierMemConfig.preset("bare")).summary is None


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


@pytest.mark.parametrize("shares", [None, [[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]]], ids=["none", "own"])
def test_a_reading_that_was_begun_with_other_head_shares_goes_on(
    tmp_path: Path, shares: list[list[float]] | None
) -> None:
    """They were the default then; where they are asked for, or the policy is another, nothing changes."""
    config = changed(settings(policy="attention"), evictor="shipped")
    assert with_defaults_of(tmp_path / "memory", config, keys=True, shares=True) is config
    reader(config=settings(policy="attention", head_shares=shares)).read(TEXT).save(tmp_path / "memory")
    found = with_defaults_of(tmp_path / "memory", config, keys=True, shares=True)
    assert (found.working.head_shares, found.evictor) == (shares, "auto")
    for other, taken in ((config, False), (config.with_working(policy="window"), True)):
        kept = with_defaults_of(tmp_path / "memory", other, keys=True, shares=taken)
        assert kept.working == other.working and kept.evictor == "shipped"
