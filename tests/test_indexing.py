"""Documents that are only indexed: answered from as if they were read, and refused where reading counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_refused, result, run
from readers import assert_same_memory, reader, settings, text_of
from test_unit_index import MeaningKey
from tiers import TEXT, model_of

from hiermem.answer import NOT_FOUND
from hiermem.asking_config import AskConfig
from hiermem.backbone import Backbone
from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryCorruptError, MemoryFileError
from hiermem.eval.methods import HierMem, new_method
from hiermem.memory.longterm import LongTermConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.recalling import recall_kv
from hiermem.retrieval.files import load_directory, save_directory
from hiermem.retrieval.keys import register_search_key

QUESTIONS = ("Where did the captain sail?", "Who sang old songs?", "Quantum chromodynamics?")
LONG = text_of(200)


def with_longterm(config: HierMemConfig, **changes: Any) -> HierMemConfig:
    """The same configuration with other settings of the long-term memory."""
    longterm = LongTermConfig(top_k=2, lexical=config.longterm.lexical, **changes)
    return HierMemConfig(**{**config.settings(), "longterm": longterm})


def plain() -> HierMemModel:
    return reader()


def beginning() -> HierMemModel:
    return reader(bos=True)


def by_units() -> HierMemModel:
    return reader(config=with_longterm(settings(), keys={"lexical": {}, "meaning": {}}))


def mamba() -> HierMemModel:
    return model_of("mamba")


def test_methods_are_compared_with_a_document_that_is_only_indexed() -> None:
    model = plain()
    ours, read = new_method("indexed", model), new_method("hiermem", model)
    context = ours.read(LONG)
    assert context.indexed and isinstance(ours, HierMem)
    for question in QUESTIONS:
        mine, theirs = ours.prompt(context, question), read.prompt(read.read(LONG), question)
        assert mine.sources == theirs.sources and torch.equal(mine.ids, theirs.ids)


@pytest.fixture
def meaning(own_registries: None) -> None:
    """A search key of units is registered for a test."""
    register_search_key(MeaningKey)


def assert_same_longterm(one: MemoryState, other: MemoryState) -> None:
    """Equal records and search keys, with all their statistics."""
    ours, theirs = one.longterm.tensors(), other.longterm.tensors()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].keys() == theirs[name].keys()
        assert all(torch.equal(tensor, theirs[name][key]) for key, tensor in ours[name].items()), name


@pytest.mark.parametrize("make", [plain, beginning, by_units, mamba])
@pytest.mark.parametrize("source", [LONG, [LONG[:301], LONG[301:]], list(range(40, 140)), "Orion."])
def test_it_is_found_and_answered_from_as_if_it_were_read(
    make: Callable[[], HierMemModel], source: Any, meaning: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    read = model.read(source)
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "read_chunk", lambda *_, **__: pytest.fail("the backbone reads"))
        indexed = model.index(source)
    assert indexed.indexed and not read.indexed
    assert (indexed.tokens, indexed.characters, indexed.text) == (read.tokens, read.characters, read.text)
    assert_same_longterm(indexed, read)
    for question in QUESTIONS:
        ours, theirs = model.prepare(indexed, question), model.prepare(read, question)
        assert torch.equal(ours.ids, theirs.ids) and ours.sources == theirs.sources
        assert not any(ours.working.num_tokens) and not any(theirs.working.num_tokens)
        assert model.ask(indexed, question, max_new_tokens=5) == model.ask(read, question, max_new_tokens=5)
    assert model.ask(indexed, "Quantum chromodynamics?").text == NOT_FOUND
    asked = list(QUESTIONS)
    assert model.ask(indexed, asked, max_new_tokens=5) == model.ask(read, asked, max_new_tokens=5)
    chats = model.chat(indexed), model.chat(read)
    for question in ("Who sang?", "Where did they sing?"):
        one, other = (chat.ask(question, max_new_tokens=5) for chat in chats)
        assert one == other


@pytest.mark.parametrize("make", [plain, by_units])
def test_pieces_are_the_whole_and_saved_is_loaded(
    make: Callable[[], HierMemModel], meaning: None, tmp_path: Path
) -> None:
    model, folder = make(), tmp_path / "memory"
    whole = model.index(iter([LONG, " The end."]))
    pieces = model.index(iter([LONG[:57], LONG[57:400], LONG[400:], " The end."]))
    assert_same_memory(pieces, whole)
    assert_same_longterm(pieces, whole)
    part = model.index(iter([LONG]))
    part.save(folder)
    again = MemoryState.load(folder, model)
    assert_same_memory(again, part)
    assert MemoryState.verify(folder) == [] and MemoryState.was_indexed(folder)
    assert again.nbytes == part.nbytes
    for memory in (part, again):
        model.index(" The end.", memory)
    assert_same_longterm(again, part)
    again.save(folder)
    assert MemoryState.load(folder, model).tokens == part.tokens


def test_a_checkpoint_finds_what_was_indexed() -> None:
    model, seen = reader(), []
    memory = model.new_memory()
    model.index(LONG, memory, checkpoint=lambda: seen.append((memory.tokens, memory.text)))
    assert [tokens for tokens, _ in seen[:-1]] == list(range(48, memory.tokens, 48))
    assert seen[-1] == (memory.tokens, LONG) and all(LONG.startswith(text) for _, text in seen)


def test_it_says_so(tmp_path: Path) -> None:
    model = reader()
    read, indexed = model.read(LONG), model.index(LONG)
    assert str(indexed).endswith("characters, only indexed") and repr(indexed).endswith(", only indexed)")
    assert "indexed" not in str(read) + repr(read) + str(model.new_memory())
    model.name_or_path = "some/model"
    assert str(model.index(LONG)).endswith(", only indexed with some/model")
    read.save(tmp_path / "read")
    assert "indexed" not in load_directory(tmp_path / "read")[1]
    assert not MemoryState.was_indexed(tmp_path / "read")


# ---- refused

NEEDS_WORKING = "only indexed and has no working memory"


def generate(model: HierMemModel, memory: MemoryState) -> object:
    return model.continue_from(memory.working.copy(), torch.tensor([[5, 6]]), 3)


def ask_with_working(model: HierMemModel, memory: MemoryState) -> object:
    model.config.asking = AskConfig(working=True)
    return model.ask(memory, "Where did the captain sail?")


def chat_with_working(model: HierMemModel, memory: MemoryState) -> object:
    model.config.asking = AskConfig(working=True)
    return model.chat(memory).ask("Where did the captain sail?")


USES: dict[str, tuple[Callable[[HierMemModel, MemoryState], object], str]] = {
    "read on": (lambda model, memory: model.read("More.", memory), "only indexed: index what comes, too"),
    "working memory": (generate, NEEDS_WORKING),
    "asking.working": (ask_with_working, NEEDS_WORKING),
    "a conversation with asking.working": (chat_with_working, NEEDS_WORKING),
    "nothing recalled": (lambda model, memory: model.ask(memory, "Where?", top_k=0), NEEDS_WORKING),
    "nothing recalled in a batch": (lambda model, memory: model.ask(memory, ["A?"], top_k=0), NEEDS_WORKING),
    "keys and values": (
        lambda model, memory: recall_kv(model.reader, memory, {0: None}),
        "keeps no keys and",
    ),
}


@pytest.mark.parametrize(("use", "sentence"), USES.values(), ids=USES)
def test_what_the_backbone_must_have_read_is_refused(
    use: Callable[[HierMemModel, MemoryState], object], sentence: str
) -> None:
    model = reader()
    memory = model.index(LONG)
    with pytest.raises(InputError, match=sentence) as caught:
        use(model, memory)
    assert len(str(caught.value).splitlines()) == 1
    assert memory.text == LONG and memory.indexed


def test_what_was_read_is_not_indexed_on() -> None:
    model = reader()
    memory = model.read(LONG)
    with pytest.raises(InputError, match="was read: read what comes, too"):
        model.index("More.", memory)
    assert memory.text == LONG


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (lambda: reader(config=with_longterm(settings(), tiers={"kv": {}})), "no tier kv"),
        (lambda: model_of("embeddings"), "no memory embeddings"),
    ],
    ids=["kv", "embeddings"],
)
def test_what_the_backbone_makes_is_refused(model: Callable[[], HierMemModel], kept: str) -> None:
    with pytest.raises(InputError, match=f"Indexing leaves {kept}, which the backbone makes"):
        model().index(TEXT)


@pytest.mark.parametrize("source", ["", iter([]), 5, b"bytes", [5000]])
def test_what_is_no_document_is_refused(source: Any) -> None:
    with pytest.raises(InputError):
        reader().index(source)


def test_an_index_does_not_replace_what_was_read(tmp_path: Path) -> None:
    model, folder = reader(), tmp_path / "memory"
    model.new_memory().save(folder)
    model.index(LONG).save(folder)
    model.read(LONG).save(folder)
    with pytest.raises(MemoryFileError, match="was read and this one was only indexed: give another folder"):
        model.index(LONG).save(folder)
    assert not MemoryState.load(folder, model).indexed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda info: info.update(indexed=1), "indexed is not a truth value"),
        (lambda info: info.update(indexed=False), "tokens and seen differ"),
        (lambda info: info.pop("indexed"), "tokens and seen differ"),
        (lambda info: info.update(recurrent=True), "holds more than that leaves"),
        (lambda info: info["longterm"]["config"].update(tiers={"kv": {}}), "holds more than that leaves"),
    ],
)
def test_nonsense_about_it_is_named(change: Callable[[Any], object], sentence: str, tmp_path: Path) -> None:
    model, folder = reader(), tmp_path / "memory"
    model.index(LONG).save(folder)
    files, info = load_directory(folder)
    change(info)
    save_directory(folder, files, info)
    with pytest.raises(MemoryCorruptError, match=sentence):
        MemoryState.load(folder, model)
    assert sentence in MemoryState.verify(folder)[0]


def test_a_working_memory_in_an_index_is_named(tmp_path: Path) -> None:
    model, folder = reader(), tmp_path / "memory"
    model.read(LONG).save(folder)
    files, info = load_directory(folder)
    info["working"]["bookkeeping"] = model.new_memory().working.bookkeeping()
    save_directory(folder, files, info | {"indexed": True})
    with pytest.raises(MemoryCorruptError, match="does not make sense"):
        MemoryState.load(folder, model)


# ---- the command

SMALL = ["--budget", "24", "--segment", "32", "--chunk", "16"]


def test_the_command_indexes_and_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    text, out, read = text_of(300) + "The pass key is 48213. " + text_of(60), tmp_path / "i", tmp_path / "r"
    common, index = ["--model", tiny_model, *SMALL], ["--index", "--out", out]
    cut = text.index("The pass key")
    first = result("read", "-", *common, *index, stdin=text[:cut].encode())
    assert first["indexed"] and first["live_tokens_max"] == 0 and first["tokens_per_second"] > 0
    again = result("read", "-", *common, *index, stdin=text.encode())
    assert again["tokens"] == first["tokens"] + again["new_tokens"] > first["tokens"]
    assert not result("read", "-", *common, "--out", read, stdin=text.encode())["indexed"]
    answers = [
        result("ask", folder, "What is the pass key?", "--model", tiny_model, "--max-new-tokens", 4)
        for folder in (out, read)
    ]
    for answer in answers:
        del answer["seconds"], answer["first_token_seconds"]
    assert answers[0] == answers[1] and any("48213" in source["text"] for source in answers[0]["sources"])
    assert result("verify", out) == {"ok": True, "problems": [], "indexed": True}
    assert result("verify", read) == {"ok": True, "problems": [], "indexed": False}
    for done in (run("verify", out), run("read", "-", *common, *index, stdin=text.encode())):
        assert b"It was only indexed and has no working memory: generate, asking.working" in done.stdout
    added = result("read", "-", *common, *index, "--append", stdin=b" The end.")
    assert added["tokens"] == again["tokens"] + added["new_tokens"] > again["tokens"]


def test_the_command_does_not_mix(tiny_model: Path, tmp_path: Path) -> None:
    common, indexed, read = ["--model", tiny_model, *SMALL], tmp_path / "i", tmp_path / "r"
    result("read", "-", *common, "--out", indexed, "--index", stdin=LONG.encode())
    result("read", "-", *common, "--out", read, stdin=LONG.encode())
    for way in ([], ["--append"]):
        done = run("read", "-", *common, "--out", indexed, *way, stdin=LONG.encode())
        assert_refused(done, "was only indexed: give --index again, or a new folder")
        done = run("read", "-", *common, "--out", read, "--index", *way, stdin=LONG.encode())
        assert_refused(done, "was read, not only indexed: leave --index out")
    kv = ["--index", "--set", "longterm.tiers.kv={}"]
    assert_refused(run("read", "-", *common, "--out", tmp_path / "n", *kv, stdin=b"Text."), "no tier kv")
    assert not (tmp_path / "n" / "manifest.json").exists()
