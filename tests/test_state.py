"""A memory on disk is the memory; one that does not fit is refused before anything is touched."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from readers import assert_same_memory, backbone, reader, settings, text_of, tokenizer
from transformers import PreTrainedTokenizerFast

from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryIncompatibleError,
    MemoryMissingError,
)
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.retrieval.files import load_directory, save_directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("policy", ["none", "window", "keen", "lively"])
@pytest.mark.parametrize("words", [3, 60, 200])
def test_a_memory_comes_back_the_same(tmp_path: Path, policy: str, words: int, dtype: torch.dtype) -> None:
    model = reader(config=settings(policy=policy), dtype=dtype)
    memory = model.read(text_of(words))
    memory.save(tmp_path / "memory")
    again = MemoryState.load(tmp_path / "memory", model)
    assert_same_memory(again, memory, atol=0.0)
    assert again.nbytes == memory.nbytes and again.segment == memory.segment
    assert again.working.config == memory.working.config
    question = "Why did Orion sail north?"
    assert model.ask(again, question, max_new_tokens=8) == model.ask(memory, question, max_new_tokens=8)
    more = text_of(40, seed=5)
    assert_same_memory(model.read(more, again), model.read(more, memory), atol=0.0)
    assert MemoryState.verify(tmp_path / "memory") == []


def test_a_memory_names_the_model_that_read_it(tmp_path: Path) -> None:
    model = reader()
    model.name_or_path = "some/model"
    memory = model.read(text_of(60))
    memory.save(tmp_path / "memory")
    assert MemoryState.read_with(tmp_path / "memory") == ("some/model", "float32")
    assert MemoryState.load(tmp_path / "memory", model).model == "some/model"
    tensors, info = load_directory(tmp_path / "memory")
    del info["model"]  # as those that were saved before
    save_directory(tmp_path / "memory", tensors, info)
    assert MemoryState.read_with(tmp_path / "memory") == ("", "float32")
    assert_same_memory(MemoryState.load(tmp_path / "memory", model), memory, atol=0.0)


def test_an_empty_memory_comes_back(tmp_path: Path) -> None:
    model = reader()
    model.new_memory().save(tmp_path / "memory")
    again = MemoryState.load(tmp_path / "memory", model)
    assert (again.tokens, again.segments, again.text) == (0, 0, "")
    assert_same_memory(model.read(text_of(60), again), model.read(text_of(60)), atol=0.0)


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    model = reader()
    memory = model.read(text_of(60))
    memory.save(tmp_path / "memory")
    model.read(text_of(60, seed=2), memory)
    memory.save(tmp_path / "memory")
    assert_same_memory(MemoryState.load(tmp_path / "memory", model), memory, atol=0.0)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_memory_of_another_text_is_not_replaced(tmp_path: Path) -> None:
    model, place = reader(), tmp_path / "memory"
    short, other = model.read(text_of(60)), model.read(text_of(60, seed=2))
    longer = model.read(text_of(40, seed=3), deepcopy(short))
    model.new_memory().save(place)
    for memory in (short, short, longer, longer):  # what is there goes on
        memory.save(place)
    before = files_of(place)
    for memory in (other, short, model.new_memory()):
        with pytest.raises(MemoryFileError, match="of another text, or of more of this one: give another"):
            memory.save(place)
        assert files_of(place) == before
    reader(config=settings(policy="window")).read(longer.text).save(place)  # the same text, read otherwise
    assert MemoryState.load(place, model).text == longer.text


def test_a_damaged_memory_may_be_replaced(tmp_path: Path) -> None:
    model, place = reader(), tmp_path / "memory"
    model.read(text_of(60)).save(place)
    next(place.glob("records-*")).write_bytes(b"nothing")
    model.read(text_of(60, seed=2)).save(place)
    assert MemoryState.verify(place) == []


def test_memories_and_models_do_not_mix(tmp_path: Path) -> None:
    model = reader()
    memory = model.read(text_of(60))
    memory.save(tmp_path / "memory")
    before = files_of(tmp_path / "memory")
    with pytest.raises(InputError, match="holds the memory of a document: give a folder of its own"):
        model.save_pretrained(tmp_path / "memory")
    assert files_of(tmp_path / "memory") == before
    model.loaded_weights = None
    model.save_pretrained(tmp_path / "model")
    sealed = {file.name for file in (tmp_path / "model").iterdir()}
    with pytest.raises(MemoryFileError, match="holds other files and no memory; give a new"):
        memory.save(tmp_path / "model")
    assert {file.name for file in (tmp_path / "model").iterdir()} == sealed
    (tmp_path / "model" / "manifest.json").write_text("{}")  # a file of one's own, of a common name
    model.save_pretrained(tmp_path / "model")


def test_a_memory_keeps_its_own_settings(tmp_path: Path) -> None:
    wide = reader(config=settings(policy="window", budget=40))
    memory = wide.read(text_of(100))
    memory.save(tmp_path / "memory")
    narrow = reader(config=settings(policy="keen", budget=20))
    assert_same_memory(MemoryState.load(tmp_path / "memory", narrow), memory, atol=0.0)


def other_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer(bos=True)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: reader(seed=1), "backbone"),
        (lambda: reader("qwen2"), "backbone"),
        (lambda: reader(bos=True), "tokenizer"),
        (lambda: reader(dtype=torch.bfloat16), "backbone|dtype"),
    ],
    ids=["other weights", "other family", "other tokenizer", "other dtype"],
)
def test_a_memory_of_another_model_is_refused(tmp_path: Path, other: Any, what: str) -> None:
    reader().read(text_of(60)).save(tmp_path / "memory")
    with pytest.raises(MemoryIncompatibleError, match=f"not read with this model's ({what}) "):
        MemoryState.load(tmp_path / "memory", other())


def test_a_memory_of_another_dtype_is_refused(tmp_path: Path) -> None:
    """Even where the weights are the same numbers in both."""
    half = backbone(dtype=torch.bfloat16)
    full = backbone(dtype=torch.bfloat16).float()
    one, other = (HierMemModel(settings(), model, tokenizer()) for model in (half, full))
    assert one.fingerprint()["backbone"] == other.fingerprint()["backbone"]
    one.read(text_of(40)).save(tmp_path / "memory")
    with pytest.raises(MemoryIncompatibleError, match="this model's dtype"):
        MemoryState.load(tmp_path / "memory", other)


def test_any_training_of_the_backbone_is_noticed(tmp_path: Path) -> None:
    model = reader()
    memory = model.read(text_of(40))
    memory.save(tmp_path / "memory")
    trained = reader()
    with torch.no_grad():
        for parameter in trained.backbone.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)
    with pytest.raises(MemoryIncompatibleError):
        MemoryState.load(tmp_path / "memory", trained)
    with pytest.raises(MemoryIncompatibleError):
        trained.ask(memory, "Who?")


def rewritten(path: Path, change: Any) -> None:
    """Save the directory anew with other content and checksums that fit it."""
    files, info = load_directory(path)
    change(files, info)
    save_directory(path, files, info)


@pytest.mark.parametrize(
    "change",
    [
        lambda files, info: info.pop("working"),
        lambda files, info: info["working"]["config"].update(policy="no such"),
        lambda files, info: info["working"]["config"].update(stranger=1),
        lambda files, info: info["working"]["bookkeeping"]["holes"].pop(),
        lambda files, info: files["working"].update({"99.keys": torch.zeros(1)}),
        lambda files, info: files["records"].pop("spans"),
        lambda files, info: files["keys"].pop("segments"),
    ],
    ids=["no working", "policy", "setting", "layers", "more layers", "spans", "statistics"],
)
def test_a_memory_that_makes_no_sense_is_refused_and_touches_nothing(tmp_path: Path, change: Any) -> None:
    model = reader()
    memory = model.read(text_of(100))
    memory.save(tmp_path / "memory")
    twin = model.read(text_of(100))
    rewritten(tmp_path / "memory", change)
    with pytest.raises((MemoryCorruptError, MemoryIncompatibleError), match=r"build it again|cannot be used"):
        MemoryState.load(tmp_path / "memory", model)
    assert_same_memory(memory, twin, atol=0.0)
    assert_same_memory(model.read(text_of(100)), twin, atol=0.0)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    model = reader()
    model.read(text_of(60)).save(tmp_path / "memory")
    largest = max(tmp_path.glob("memory/*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-7] ^= 1
    largest.write_bytes(content)
    with pytest.raises(MemoryCorruptError):
        MemoryState.load(tmp_path / "memory", model)
    assert MemoryState.verify(tmp_path / "memory")


def test_a_missing_memory_is_named(tmp_path: Path) -> None:
    with pytest.raises(MemoryMissingError, match="nothing-here"):
        MemoryState.load(tmp_path / "nothing-here", reader())


def test_the_manifest_says_what_is_inside(tmp_path: Path) -> None:
    memory = reader().read(text_of(60))
    memory.save(tmp_path / "memory")
    written = json.loads((tmp_path / "memory" / "manifest.json").read_text(encoding="utf-8"))
    text = json.dumps(written)
    for value in memory.fingerprint.values():
        assert value in text
    assert f'"tokens": {memory.tokens}' in text and f'"segment": {memory.segment}' in text


# ---- going back


def test_an_earlier_moment_is_returned_to() -> None:
    model, text = reader(), text_of(200)
    ids = model.tokenizer(text).input_ids
    for cut, later in ((40, 41), (48, 60), (50, 96), (95, 97), (96, 144)):
        memory, twin = model.read(ids[:cut]), model.read(ids[:cut])
        moment = memory.moment
        model.read(ids[cut:later], memory)
        memory.moment = moment
        assert_same_memory(memory, twin, atol=0.0)
        rest = ids[cut:300]
        assert_same_memory(model.read(rest, memory), model.read(rest, twin), atol=0.0)
