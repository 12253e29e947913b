"""Configurations: presets, files, and a plain sentence for what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from readers import backbone
from transformers import AutoConfig

from hiermem.config import PRESETS, HierMemConfig
from hiermem.errors import InputError
from hiermem.memory.digest import digest
from hiermem.memory.hmt.module import HMTModule, SummaryConfig
from hiermem.memory.longterm import LongTermConfig
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.model import HierMemModel
from hiermem.retrieval.keys.lexical import LexicalKeyConfig
from hiermem.retrieval.store import StoreConfig

UNUSUAL = {
    "backbone": "some/model",
    "backbone_revision": "abc",
    "segment": 96,
    "chunk": 32,
    "working": WorkingMemoryConfig("attention", 77, 3, 0.25, 19, "compact", 1000),
    "longterm": LongTermConfig(7, StoreConfig("ivf", 5, 6, 7), LexicalKeyConfig(64, 5, 0.7, 9)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_full_configurations(name: str) -> None:
    config = HierMemConfig.preset(name)
    assert isinstance(config.working, WorkingMemoryConfig) and isinstance(config.longterm, LongTermConfig)
    assert config.segment % config.chunk == 0
    changed = HierMemConfig.preset(name, segment=1024, chunk=1024)
    assert (changed.segment, changed.chunk) == (1024, 1024)
    assert changed.working == config.working and changed.longterm == config.longterm
    assert HierMemConfig.preset(name).settings() == config.settings()


def test_presets_differ_as_they_say() -> None:
    assert HierMemConfig.preset("full").longterm.top_k > 0
    for name in ("bare", "streaming", "namm"):
        assert HierMemConfig.preset(name).longterm.top_k == 0
    bare, streaming = HierMemConfig.preset("bare").working, HierMemConfig.preset("streaming").working
    assert (bare.policy, bare.positions) == ("full_cache", "absolute")
    assert (streaming.policy, streaming.positions) == ("window", "compact")


@pytest.mark.parametrize(
    ("installed", "keys"),
    [(True, {"dense", "lexical", "trained"}), (False, {"lexical", "states", "trained"})],
)
def test_full_searches_by_meaning_where_an_encoder_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: bool, keys: set[str]
) -> None:
    monkeypatch.setattr("hiermem.config.has_minilm", lambda: installed)
    config = HierMemConfig.preset("full")
    assert config.longterm.keys.keys() == keys
    assert HierMemConfig.from_dict(config.to_dict()).longterm == config.longterm
    assert HierMemConfig().longterm.keys.keys() == {
        "lexical",
        "trained",
    }  # as saved models without the setting


@pytest.mark.parametrize(
    ("longterm", "lexical"),
    [
        ({}, LexicalKeyConfig(dim=2048, grams=0)),
        ({"longterm": {"top_k": 3}}, LexicalKeyConfig(dim=2048, grams=0)),
        ({"longterm": {"lexical": {"dim": 64, "version": 1}}}, LexicalKeyConfig(64, version=1, grams=0)),
    ],
)
def test_a_model_of_an_earlier_format_keeps_its_lexical_key(
    longterm: dict[str, Any], lexical: LexicalKeyConfig
) -> None:
    for version in (1, 2, 3):
        config = HierMemConfig.from_dict({"format_version": version, **longterm})
        assert config.longterm.lexical == lexical
        assert HierMemConfig.from_dict(config.to_dict()).longterm == config.longterm
    assert HierMemConfig.from_dict({"format_version": 4}).longterm.lexical == LexicalKeyConfig()


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="choose one of full, streaming, namm, hmt, bare"):
        HierMemConfig.preset("no such")


@pytest.mark.parametrize("config", [*(make() for make in PRESETS.values()), HierMemConfig(**UNUSUAL)])
def test_files_hold_every_setting(config: HierMemConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    for again in (HierMemConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(again, HierMemConfig)
        assert again.settings() == config.settings()
        assert again.format_version == config.format_version
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == "hiermem"
    assert HierMemConfig.from_dict(json.loads(config.to_json_string())).settings() == config.settings()


def test_what_others_note_in_a_file_does_not_keep_it_from_loading(tmp_path: Path) -> None:
    config = HierMemConfig(attn_implementation="sdpa")
    config.noted = 7  # type: ignore[attr-defined]
    config.save_pretrained(tmp_path)
    for again in (HierMemConfig.from_pretrained(tmp_path), HierMemConfig.from_dict(config.to_dict())):
        assert again.settings() == config.settings() and again.noted == 7


@pytest.mark.parametrize(
    ("given", "sentence"), [("full", r"preset\('full'\)"), ("fool", "not 'fool'"), ({}, "not dict")]
)
def test_what_is_no_configuration_is_refused(given: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        HierMemModel.from_pretrained("smollm2", given)
    with pytest.raises(InputError, match=sentence):
        HierMemModel(given, backbone())


def test_settings_of_one_configuration_do_not_leak_into_another() -> None:
    one, other = HierMemConfig(), HierMemConfig()
    one.working.budget = 9
    assert other.working.budget != 9


def test_with_working_changes_that_alone() -> None:
    config = HierMemConfig(**UNUSUAL)
    changed = config.with_working(budget=55)
    assert changed.working == WorkingMemoryConfig("attention", 55, 3, 0.25, 19, "compact", 1000)
    assert changed.longterm == config.longterm and changed.backbone == config.backbone
    assert config.working.budget == 77
    with pytest.raises(ValueError, match="at least 1"):
        config.with_working(budget=0)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"segment": 100, "chunk": 64}, "segment must be a multiple of the chunk, not a segment of 100"),
        ({"segment": 0}, "multiple of the chunk"),
        ({"chunk": 0}, "multiple of the chunk"),
        ({"budget": 256}, r"part working: give working=WorkingMemoryConfig\(budget=…\)"),
        ({"top_k": 3}, "part longterm"),
        ({"chunks": 3}, "no setting 'chunks': choose one of backbone"),
        ({"backbone": 3}, "HierMemConfig.backbone must be a text, not 3"),
        ({"working": {"policy": "no such"}}, "choose one of"),
        ({"working": {"budget": -3}}, "at least 1 token per KV head, not -3"),
        ({"longterm": {"top_k": -1}}, "must not be negative, not -1"),
        ({"longterm": {"store": {"kind": "no such"}}}, "choose one of"),
        ({"longterm": {"lexical": {"dim": 0}}}, "at least 1"),
    ],
)
def test_bad_settings_are_explained(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        HierMemConfig(**bad)


def test_former_names_of_settings_are_read_from_files_and_named_elsewhere(tmp_path: Path) -> None:
    """Files hold the first names, so that earlier versions read them, too."""
    own = SummaryConfig(tokens=2, residual=False, init_text="a")
    HierMemConfig(summary=own).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["summary"]
    assert (written["neutral"], written["words"]) == (False, "a") and "residual" not in written
    assert HierMemConfig.from_pretrained(tmp_path).summary == own
    for names in (("neutral", "words"), ("residual", "init_text")):
        assert HierMemConfig(summary={"tokens": 2, names[0]: False, names[1]: "a"}).summary == own
    for former, now in (("neutral", "residual"), ("words", "init_text")):
        with pytest.raises(InputError, match=f"The setting {former} of SummaryConfig is now {now}."):
            SummaryConfig(**{former: ""})


def test_a_digest_is_of_the_first_names_of_settings() -> None:
    """Memories with memory embeddings name it."""
    module = HMTModule(SummaryConfig(tokens=2, width=4, init_text="\\n"), 6)
    settings = (
        "SummaryConfig(tokens=2, sensory=0, width=4, last=300, query='previous', neutral=True, "
        "words='\\\\n', search=0)"
    )
    assert module.digest == digest(settings, module.state_dict())
