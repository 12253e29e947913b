"""Memories that somebody else made, or an older release; copies of memories."""

import copy
import json
import os
import pickle
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_refused, run
from fuzz_memories import MORE, QUESTION, Case, tried
from readers import assert_same_memory, assert_same_working, ids_of, reader, settings, text_of
from tiers import MEMORIES, TEXT, TIERS, model_of

from hiermem.cache import BackboneCache
from hiermem.errors import InputError, MemoryFileError
from hiermem.memory.longterm import LongTermConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.retrieval import manifest as manifests
from hiermem.retrieval.files import load_directory, save_directory
from hiermem.retrieval.keys import Question
from hiermem.retrieval.keys.lexical import LexicalKeyConfig
from hiermem.retrieval.staging import Staging
from hiermem.retrieval.store import StoreConfig

FUZZ = int(os.environ.get("HIERMEM_FUZZ", "60"))
"""Changed memories that are tried."""


# ---- of an older release


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[HierMemModel, Path]:
    """The model of a tier and a memory that it left in the first release."""
    model, folder = model_of(request.param), MEMORIES / "format1" / request.param
    known = load_directory(folder)[1]["fingerprint"]
    assert known.keys() == model.fingerprint().keys()
    # Its values are of the release of torch, transformers and tokenizers that wrote it.
    monkeypatch.setattr(model, "fingerprint", lambda *_, **__: known)
    return model, folder


def test_memories_of_the_first_release_load_answer_and_go_on(tier: tuple[HierMemModel, Path]) -> None:
    model, folder = tier
    longterm = model.config.longterm
    model.config.longterm = replace(longterm, lexical=replace(longterm.lexical, version=1, grams=0))
    assert MemoryState.verify(folder) == []
    memory, fresh = MemoryState.load(folder, model), model.read(TEXT)
    assert memory.text == fresh.text == TEXT
    # Another machine wrote it: embeddings in its keys are rounded as there.
    assert_same_memory(memory, fresh, atol=1e-4, keys_atol=1e-5)
    assert model.ask(memory, QUESTION, max_new_tokens=4).sources
    assert_same_memory(model.read(MORE, memory), model.read(MORE, fresh), atol=1e-3, keys_atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "embeddings", "isolated"])
def test_a_memory_goes_on_in_its_own_segments(name: str, tmp_path: Path) -> None:
    model, other = model_of(name), model_of(name)
    memory = model.read(TEXT)
    memory.save(tmp_path / "memory")
    other.config.segment = 2 * model.config.segment
    again = MemoryState.load(tmp_path / "memory", other)
    assert_same_memory(other.read(MORE, again), model.read(MORE, memory), atol=0.0)


# ---- of a stranger


def test_changed_memories_are_refused_or_make_sense() -> None:
    ends, faults = tried(FUZZ, seed=int(os.environ.get("HIERMEM_FUZZ_SEED", "1")))
    assert faults == [] and ends.total() == FUZZ


def changed(folder: Path, change: Any) -> Path:
    """The memory with other content, sealed anew."""
    files, info = load_directory(folder)
    change(files, info)
    save_directory(folder, files, info)
    return folder


def nan(name: str) -> Any:
    def change(files: Any, _: Any) -> None:
        files["working"][name].view(-1)[3] = float("nan")

    return change


def config_of(part: str, **changes: Any) -> Any:
    return lambda _, info: info[part]["config"].update(changes)


def store_of(**changes: Any) -> Any:
    return lambda _, info: info["longterm"]["config"]["store"].update(changes)


NONSENSE = {
    "NaN in a cache": (nan("2.values"), "2.values holds NaN or infinity"),
    "NaN in a state": (nan("1.state.received"), "1.state.received holds NaN"),
    "another dtype": (
        lambda files, _: files["working"].update({"0.keys": files["working"]["0.keys"].half()}),
        "0.keys is of another type",
    ),
    "another rank": (
        lambda files, _: files["working"].update({"0.keys": files["working"]["0.keys"][0]}),
        "0.keys has another shape",
    ),
    "a cache less": (
        lambda files, _: [files["working"].pop(name) for name in [*files["working"]] if name[0] == "1"],
        "a cache is missing",
    ),
    "a stranger": (lambda files, _: files["working"].update(x=torch.zeros(1)), "no place for 'x'"),
    "positions": (
        lambda files, _: files["working"]["0.positions"].copy_(files["working"]["0.positions"].flip(-1)),
        "positions are not in order",
    ),
    "later positions": (lambda files, _: files["working"]["0.positions"].add_(99), "a position leaves"),
    "an id": (lambda files, _: files["records"]["ids"][5:6].fill_(320), "a token leaves its range"),
    "a record less": (
        lambda files, _: files["keys"].update(keys=files["keys"]["keys"][:1]),
        "as many keys as records",
    ),
    "spans": (lambda files, _: files["records"]["spans"][1:2, 2:4].add_(1), "does not begin where"),
    "half a character": (
        lambda files, _: files["records"]["text"][-1:].fill_(0xC3),
        "can't decode byte",
    ),
    "a key": (lambda files, _: files["keys"]["keys"][0, 0].fill_(1e30), "a search key leaves its range"),
    "more files": (lambda files, _: files.update(more={}), "the memory has other entries"),
    "a file less": (lambda files, _: files.pop("embeddings"), "the memory has other entries"),
    "no fingerprint": (lambda _, info: info.update(fingerprint=["x"]), "the fingerprint is not one"),
    "more info": (lambda _, info: info.update(more=1), "the manifest has other entries"),
    "seen": (lambda _, info: info["working"]["bookkeeping"].update(seen=[96]), "seen and columns differ"),
    "tokens": (lambda _, info: info.update(tokens=96), "tokens and seen differ"),
    "rows": (lambda _, info: info["working"]["bookkeeping"].update(next_frame=[1, 2]), "not of one row"),
    "holes": (lambda _, info: info["working"]["bookkeeping"].update(holes=[0, 0, 0]), "truth values"),
    "segment": (lambda _, info: info.update(segment=47), "another number of tokens"),
    "characters": (lambda _, info: info.update(characters=7), "of another document"),
    "recurrent": (lambda _, info: info.update(recurrent=True), "recurrent is not"),
    "links": (store_of(hnsw_links=10**9, kind="hnsw"), "hnsw_links must be between"),
    "lists": (store_of(ivf_lists=2**30, kind="ivf"), "ivf_lists and ivf_probes must be"),
    "a setting": (config_of("working", budget=24.0), "budget cannot have the value"),
    "a setting less": (lambda _, info: info["working"]["config"].pop("sinks"), "no setting 'sinks'"),
    "a setting more": (config_of("longterm", more=1), "no setting 'more'"),
    "a range": (config_of("working", trained_range=-1), "trained"),
}


@pytest.mark.parametrize(("change", "sentence"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_with_a_seal_that_fits_is_named(tmp_path: Path, change: Any, sentence: str) -> None:
    model, folder = model_of("plain"), tmp_path / "memory"
    shutil.copytree(MEMORIES / "format1" / "plain", folder)
    info = load_directory(folder)[1]
    changed(folder, lambda _, own: own.update(fingerprint=model.fingerprint()))
    assert MemoryState.load(folder, model).tokens == info["tokens"]
    changed(folder, change)
    with pytest.raises(MemoryFileError, match=sentence) as caught:
        MemoryState.load(folder, model)
    assert len(str(caught.value).splitlines()) == 1


def test_verify_finds_a_torn_memory(tmp_path: Path) -> None:
    """Working memory of one moment, records of another."""
    shutil.copytree(MEMORIES / "format1" / "plain", tmp_path / "memory")
    model = model_of("plain")
    memory = model.read(TEXT)
    model.read(MORE, memory)
    memory.save(tmp_path / "later")
    records = {name: own for name, own in load_directory(tmp_path / "later")[0].items() if name != "working"}
    changed(tmp_path / "memory", lambda files, _: files.update(records))
    (problem,) = MemoryState.verify(tmp_path / "memory")
    assert "whole but does not make sense" in problem


# ---- that leads elsewhere

opened: list[str] | None = None
"""Files opened while a test listens; None: none does."""


def look(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        opened.append(os.path.abspath(os.fsdecode(arguments[0])))


sys.addaudithook(look)  # for ever: hooks cannot be taken off


def data_of(memory: Path) -> Path:
    return next(memory.glob("working-*"))


def entry(**changes: Any) -> Any:
    def change(memory: Path, outside: Path) -> None:
        body = Case(memory, [], random.Random()).manifest
        given = {name: str(value).replace("OUTSIDE", str(outside)) for name, value in changes.items()}
        body["files"]["working"] |= given
        (memory / "manifest.json").write_bytes(manifests.render(body))

    return change


def link(name: str | None) -> Any:
    def change(memory: Path, outside: Path) -> None:
        file = memory / name if name else data_of(memory)
        if file.exists():
            shutil.copy(file, outside)
            file.unlink()
        file.symlink_to(outside)

    return change


def names_model(name: str) -> Any:
    def change(memory: Path, outside: Path) -> None:
        model = outside.parent / "model"
        shutil.copytree(model, memory / "model")
        changed(memory, lambda _, info: info.update(model=name.replace("OUTSIDE", str(model))))

    return change


def pipe(memory: Path, _: Path) -> None:
    file = data_of(memory)
    file.unlink()
    os.mkfifo(file)


def noted_elsewhere(memory: Path, outside: Path) -> None:
    """The note of a save that sweeps what is not its own."""
    Staging(memory).note(["../outside", str(outside), "notes.txt", "manifest.json", ".lock"])


NOT_PLAIN, DAMAGED, NOT_OURS = "not a plain file", "was changed or cut short", "does not come with hiermem"

# What is changed, and what asking and reading on say to it; nothing where they go on.
WAYS: dict[str, tuple[Any, str, str]] = {
    "the manifest is a link": (link("manifest.json"), NOT_PLAIN, NOT_PLAIN),
    "a data file is a link": (link(None), NOT_PLAIN, NOT_PLAIN),
    "a data file is a link to a device": (
        lambda memory, _: link(None)(memory, Path("/dev/zero")),
        NOT_PLAIN,
        NOT_PLAIN,
    ),
    "a data file is a pipe": (pipe, NOT_PLAIN, NOT_PLAIN),
    "a data file lies above": (entry(file="../outside"), DAMAGED, DAMAGED),
    "a data file has a path": (entry(file="OUTSIDE"), DAMAGED, DAMAGED),
    "the lock is a link": (link(".lock"), "", "The file .lock in book.hmem is a link"),
    "the note is a link": (link(".saving"), "", "move it away"),
    "the note names others": (noted_elsewhere, "", ""),
    "the model lies in the folder": (names_model("book.hmem/model"), NOT_OURS, ""),
    "the model lies beside it": (names_model("model"), NOT_OURS, ""),
    "the model has a path": (names_model("OUTSIDE"), NOT_OURS, ""),
    "the model has an address": (names_model("https://example.org/model"), NOT_OURS, ""),
}


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that the user trusts, and a memory that it read."""
    place, model = tmp_path_factory.mktemp("trusted"), model_of("plain")
    model.backbone.save_pretrained(place / "model")
    model.tokenizer.save_pretrained(place / "model")
    (place / "text.txt").write_text(TEXT, "utf-8")
    read = run("read", place / "text.txt", "--out", place / "book.hmem", "--model", place / "model", *SMALL)
    assert read.returncode == 0, read.stderr
    return place


SMALL = ["--budget", "24", "--segment", "48", "--chunk", "16"]


@pytest.mark.parametrize(("way", "asking", "reading"), WAYS.values(), ids=WAYS)
def test_a_memory_leads_nowhere(
    trusted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Any, asking: str, reading: str
) -> None:
    global opened
    memory, outside, model = tmp_path / "book.hmem", tmp_path / "outside", tmp_path / "model"
    shutil.copytree(trusted / "book.hmem", memory)
    shutil.copytree(trusted / "model", model)
    settings = json.loads((model / "config.json").read_text("utf-8")) | {
        "auto_map": {"AutoConfig": "own.Own"}
    }
    (model / "config.json").write_text(json.dumps(settings), "utf-8")
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", "utf-8")
    (memory / "notes.txt").write_text("mine")
    outside.write_bytes(b"theirs")
    (tmp_path / "more.txt").write_text(MORE, "utf-8")
    way(memory, outside)
    kept = outside.read_bytes()
    monkeypatch.chdir(tmp_path)
    given = ["--model", trusted / "model"]
    try:
        opened = []
        asked = run("ask", "book.hmem", QUESTION, "--max-new-tokens", 2, *(given * (asking != NOT_OURS)))
        read = run("read", "more.txt", "--out", "book.hmem", "--append", *SMALL, *given)
        seen = opened
    finally:
        opened = None
    for done, expected in ((asked, asking), (read, reading)):
        if expected:
            assert_refused(done, expected)
        else:
            assert done.returncode == 0, done.stderr
    assert not [path for path in seen if path in (str(outside), "/dev/zero") or path.startswith(f"{model}/")]
    assert str(memory / "manifest.json") in seen or asking == reading == NOT_PLAIN
    assert outside.read_bytes() == kept and (memory / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "ran").exists()


# ---- copies


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))])
def test_copies_of_memories_go_on_by_themselves(name: str, how: Any) -> None:
    model = model_of(name)
    memory, twin, untouched = model.read(TEXT), model.read(TEXT), model.read(TEXT)
    other = how(memory)
    assert_same_memory(other, memory, atol=0.0)
    assert model.ask(other, QUESTION, max_new_tokens=4) == model.ask(memory, QUESTION, max_new_tokens=4)
    assert_same_memory(model.read(MORE, other), model.read(MORE, twin), atol=0.0)
    assert_same_memory(memory, untouched, atol=0.0)


def test_a_copy_has_the_parameters_of_the_model() -> None:
    model = model_of("isolated")
    twin = copy.deepcopy(model.read(TEXT))
    assert twin.working.mamba is not None and twin.working.mamba.heads is model.mamba
    assert twin.working.recurrence is not None and twin.working.recurrence.module is model.summary


def test_a_pickle_is_not_larger_than_what_it_holds() -> None:
    memory = reader().read(text_of(400))
    assert len(pickle.dumps(memory)) < 3 * (memory.nbytes + len(memory.text) * 10)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "torch"])
def test_copies_search_alike(kind: str) -> None:
    config = settings()
    config.longterm = LongTermConfig(store=StoreConfig(kind=kind), lexical=LexicalKeyConfig(dim=64))
    memory = reader(config=config).read(text_of(100)).longterm
    found = memory.recall(Question("captain Orion"), 2)
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert [(hit.segment, hit.score) for hit in other.recall(Question("captain Orion"), 2)] == [
            (hit.segment, hit.score) for hit in found
        ]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_copies_of_caches_go_on_by_themselves(how: Any) -> None:
    model, ids = reader(), ids_of(60, rows=2)
    with torch.no_grad():
        cache = model(ids).past_key_values
        other = how(cache)
        assert isinstance(other, BackboneCache) and other.memory is not cache.memory
        assert_same_working(other.memory, cache.memory, atol=0.0)
        after = model(ids[:, :9], past_key_values=other).logits
        assert_same_working(cache.memory, model(ids).past_key_values.memory, atol=0.0)
        torch.testing.assert_close(model(ids[:, :9], past_key_values=cache).logits, after, atol=0.0, rtol=0.0)


def test_a_memory_says_what_it_is() -> None:
    memory = model_of("plain").read(TEXT)
    assert repr(memory) == f"MemoryState(101 tokens in 3 segments, {len(TEXT)} characters, model 'tiny')"


# ---- settings that nothing could be built of


@pytest.mark.parametrize("wrong", [{"dim": 2**21}, {"saturation": 1e9}])
def test_search_keys_are_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be at most"):
        LongTermConfig(lexical=LexicalKeyConfig(**wrong))


@pytest.mark.parametrize("wrong", [{"hnsw_links": 1}, {"hnsw_links": 1025}, {"ivf_lists": 2**21}])
def test_indices_are_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="between"):
        StoreConfig(**wrong)
