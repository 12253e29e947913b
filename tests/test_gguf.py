"""GGUF files as backbones: converted once, the same model and tokenizer; what cannot be is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import assert_refused, run
from gguf_models import TEMPLATE, model_of, write_gguf
from readers import ids_of, text_of, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hiermem import conversions
from hiermem.config import HierMemConfig
from hiermem.conversions import MANIFEST
from hiermem.errors import InputError
from hiermem.gguf_conversion import gguf_folder
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.retrieval.disk import sha256_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIERMEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", model_of(max_position_embeddings=2048))


def converted(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(gguf_folder(path, progress=False)).eval()


def logits(model: PreTrainedModel, length: int = 60) -> torch.Tensor:
    with torch.no_grad():
        return model(ids_of(length)).logits


# ---- the same model


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("qwen2", {"tokenizer.ggml.pre": "qwen2"}),
        ("gemma3", {}),
        ("llama", {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}),
        (
            "qwen2",
            {
                "tokenizer.ggml.pre": "qwen2",
                "qwen2.rope.scaling.type": "yarn",
                "qwen2.rope.scaling.factor": 4.0,
                "qwen2.rope.scaling.original_context_length": 16,
            },
        ),
    ],
    ids=["llama", "qwen2", "gemma3", "linear", "yarn"],
)
def test_a_model_computes_what_it_did_before(
    tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    changes: dict[str, Any] = {}
    if kind := settings.get(f"{architecture}.rope.scaling.type"):
        changes["rope_parameters"] = {"rope_type": kind, "rope_theta": 10000.0}
        changes["rope_parameters"]["factor"] = settings[f"{architecture}.rope.scaling.factor"]
        if kind == "yarn":
            changes["rope_parameters"]["original_max_position_embeddings"] = 16
    if architecture == "gemma3":
        changes = {"num_hidden_layers": 7, "query_pre_attn_scalar": 256}
        changes["layer_types"] = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    model = model_of(architecture, **changes)
    path = write_gguf(tmp_path / "model.gguf", model, architecture, settings=settings)
    torch.testing.assert_close(logits(converted(path)), logits(model), atol=1e-5, rtol=1e-4)


def test_untied_embeddings_are_kept(tmp_path: Path) -> None:
    model = model_of(tie_word_embeddings=False)
    path = write_gguf(tmp_path / "model.gguf", model)
    torch.testing.assert_close(logits(converted(path)), logits(model), atol=1e-5, rtol=1e-4)


def test_frequencies_of_llama_3_are_known_by_their_factors(tmp_path: Path) -> None:
    parameters = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    parameters |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = model_of(head_dim=16, rope_parameters=parameters, max_position_embeddings=131072)
    plain = 1 / 500_000.0 ** (np.arange(8) / 8)
    factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    settings = {"llama.rope.freq_base": 500_000.0}
    extra = {"rope_freqs.weight": factors}
    path = write_gguf(tmp_path / "model.gguf", model, settings=settings, extra=extra)
    torch.testing.assert_close(logits(converted(path)), logits(model), atol=1e-5, rtol=1e-4)
    extra = {"rope_freqs.weight": factors * np.linspace(1, 2, 8, dtype=np.float32)}
    path = write_gguf(tmp_path / "other.gguf", model, settings=settings, extra=extra)
    with pytest.raises(InputError, match=r"the setting llama\.rope_freqs, which transformers would leave"):
        converted(path)


@pytest.mark.parametrize(
    ("stored", "dtype"), [("F32", torch.float32), ("F16", torch.bfloat16), ("Q8_0", torch.bfloat16)]
)
def test_weights_are_bf16_unless_the_file_has_float32(
    tmp_path: Path, stored: str, dtype: torch.dtype
) -> None:
    model = model_of(hidden_size=64, intermediate_size=64, head_dim=16)
    there = converted(write_gguf(tmp_path / "model.gguf", model, stored=stored))
    assert there.dtype == dtype
    assert not hasattr(there.config, "quantization_config")
    before, after = model.state_dict(), there.state_dict()
    for name, values in before.items():
        torch.testing.assert_close(after[name].float(), values, atol=0.02, rtol=0.02)


# ---- the same tokens


def tokenizer_of(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(gguf_folder(path, progress=False))


def test_tokens_template_and_special_tokens_come_along(llama: Path) -> None:
    there, here = tokenizer_of(llama), tokenizer()
    text = text_of(80) + "\n\n12 x½ \U0001f642"
    assert there(text).input_ids == here(text).input_ids
    assert there.chat_template == TEMPLATE
    assert (there.pad_token_id, there.bos_token_id, there.eos_token_id) == (0, 1, 2)
    assert there("a <s> b").input_ids[1:3] != here("a <s>").input_ids and 1 in there("a <s> b").input_ids
    config = json.loads((gguf_folder(llama) / "generation_config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({"tokenizer.ggml.add_bos_token": True}, [1], []),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [1], [2]),
        ({"tokenizer.ggml.add_bos_token": None}, [], []),
        ({"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.pre": "llama-bpe"}, [1], []),
        ({"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.pre": "llama-bpe"}, [], []),
    ],
)
def test_a_text_begins_and_ends_as_the_file_says(
    tmp_path: Path, settings: dict[str, Any], before: list[int], after: list[int]
) -> None:
    there = tokenizer_of(write_gguf(tmp_path / "model.gguf", model_of(), settings=settings))
    ids = there("the captain").input_ids
    assert ids == [*before, *there("the captain", add_special_tokens=False).input_ids, *after]
    assert len(there("the captain", add_special_tokens=False).input_ids) < len("the captain")


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["a", "\n", "\n", "123", " x", "\n ", " ½", "'s"]),
        ("smollm", ["a", "\n\n", "1", "2", "3", " x", "\n  ", "½", "'s"]),
        ("qwen2", ["a", "\n\n", "1", "2", "3", " x", "\n", " ", " ", "½", "'s"]),
        ("llama-bpe", ["a", "\n\n", "123", " x", "\n", " ", " ", "½", "'s"]),
        ("stablelm2", ["a", "\n\n", "1", "2", "3", " x", "\n", " ", " ", "½", "'s"]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    there = tokenizer_of(
        write_gguf(tmp_path / "model.gguf", model_of(), settings={"tokenizer.ggml.pre": pre})
    )
    text = "a\n\n123 x\n  ½'s"
    split = there.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in split] == pieces


def test_words_of_llama_3_are_tokens_whether_merges_lead_to_them_or_not(tmp_path: Path) -> None:
    settings = {"tokenizer.ggml.pre": "llama-bpe"}
    there = tokenizer_of(write_gguf(tmp_path / "model.gguf", model_of(), settings=settings))
    assert there.backend_tokenizer.model.ignore_merges


def test_a_turn_ends_an_answer_too(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", model_of(), settings={"tokenizer.ggml.eot_token_id": 5})
    assert converted(path).generation_config.eos_token_id == [2, 5]


# ---- in hiermem


def test_it_reads_is_asked_saved_and_loaded(llama: Path, tmp_path: Path, cache: Path) -> None:
    config = HierMemConfig.preset("streaming")
    model = HierMemModel.from_pretrained(llama, config)
    memory = model.read(text_of(60), progress=False)
    answer = model.ask(memory, "Who sailed north?", max_new_tokens=4)
    memory.save(tmp_path / "m.hmem")
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(cache)  # which is made anew where it is needed
    again = HierMemModel.from_pretrained(tmp_path / "saved")
    assert again.config.backbone == str(llama) and again.config.backbone_revision == sha256_of(llama)
    assert (
        again.ask(MemoryState.load(tmp_path / "m.hmem", again), "Who sailed north?", max_new_tokens=4)
        == answer
    )
    assert MemoryState.verify(tmp_path / "m.hmem") == []


def test_a_relative_path_is_saved_whole(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.parent)
    model = HierMemModel.from_pretrained(llama.name)
    assert model.name_or_path == model.config.backbone == str(llama)


def test_with_every_tier_off_it_is_the_bare_model(llama: Path) -> None:
    model = HierMemModel.from_pretrained(llama, HierMemConfig.preset("bare"))
    with torch.no_grad():
        ours = model(ids_of(60)).logits
    torch.testing.assert_close(ours, logits(model_of(max_position_embeddings=2048)), atol=1e-5, rtol=1e-4)


def test_commands_take_a_gguf_file(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text_of(60))
    done = run("read", tmp_path / "text.txt", "--model", llama, "--out", tmp_path / "m.hmem", "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.decode().count("converting") == 1
    done = run("ask", tmp_path / "m.hmem", "Who?", "--model", llama, "--json")
    assert done.returncode == 0 and b"converting" not in done.stderr, done.stderr.decode()


# ---- the cache


def test_the_folder_is_named_by_the_hash_and_made_once(
    llama: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gguf_folder(llama)
    assert folder == cache / f"gguf-{sha256_of(llama)}"
    assert capsys.readouterr().err == f"hiermem: converting {llama} once, a minute or more...\n"
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["source"] == {"file": "tiny.gguf", "sha256": sha256_of(llama)}
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {MANIFEST}
    moved = llama.rename(llama.with_name("moved.gguf"))
    assert gguf_folder(moved) == folder
    assert capsys.readouterr() == ("", "")


def test_a_folder_that_was_changed_is_made_again(llama: Path) -> None:
    folder = gguf_folder(llama)
    before = (folder / MANIFEST).read_bytes()
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff")
    assert gguf_folder(llama) == folder
    assert (folder / MANIFEST).read_bytes() == before
    assert (
        sha256_of(folder / "model.safetensors") == json.loads(before)["files"]["model.safetensors"]["sha256"]
    )


# ---- what is refused


def test_a_hash_that_is_asked_for_must_be_the_files(llama: Path, tmp_path: Path) -> None:
    right = sha256_of(llama)
    model = HierMemModel.from_pretrained(llama, revision=right.upper())
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match=f"has the SHA-256 {right}, not 0+"):
        HierMemModel.from_pretrained(llama, revision="0" * 64)
    with pytest.raises(InputError, match="is its SHA-256, 64 hexadecimal digits, not 'main'"):
        HierMemModel.from_pretrained(llama, revision="main")
    with pytest.raises(InputError, match="has no subfolders"):
        HierMemModel.from_pretrained(llama, subfolder="sub")
    write_gguf(llama, model_of(rms_norm_eps=0.5))
    done = run("read", "python-reference", "--model", tmp_path / "saved", "--out", tmp_path / "m.hmem")
    assert_refused(done, f"The GGUF file {llama} has the SHA-256 ")


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("size", [4, 12, 40, 3000, 20_000, -1, -40_000])
def test_a_file_that_is_cut_off_is_refused(llama: Path, tmp_path: Path, size: int) -> None:
    cut(llama, size)
    done = run("read", "python-reference", "--model", llama, "--out", tmp_path / "m.hmem")
    assert_refused(done, f"The GGUF file {llama} is damaged or cut off: download it again.")
    assert not list(tmp_path.glob("cache/gguf-*/"))


def test_what_is_no_gguf_file_is_refused(llama: Path, tmp_path: Path) -> None:
    def refused(name: object, expected: str) -> None:
        assert_refused(
            run("read", "python-reference", "--model", name, "--out", tmp_path / "m.hmem"), expected
        )

    refused(tmp_path / "none.gguf", f"There is no GGUF file {tmp_path / 'none.gguf'}")
    refused("some/model.gguf", "There is no GGUF file ")
    (tmp_path / "text.gguf").write_text("GGML or whatever")
    refused(tmp_path / "text.gguf", "is not a GGUF file")
    (tmp_path / "empty.gguf").touch()
    refused(tmp_path / "empty.gguf", "is not a GGUF file")
    (tmp_path / "folder.gguf").mkdir()
    refused(tmp_path / "folder.gguf", "could not be loaded")
    shard = llama.rename(tmp_path / "model-00001-of-00002.gguf")
    refused(shard, "is one of several parts of a model: join them")


@pytest.mark.parametrize(
    ("architecture", "settings", "missing", "expected"),
    [
        ("llama", {"split.count": 2}, (), "is one of several parts of a model"),
        ("llama", {"tokenizer.ggml.pre": "new-one"}, (), "calls 'new-one', which is unknown here, how its"),
        ("llama", {"tokenizer.ggml.pre": None}, (), "does not say how its model splits text"),
        ("llama", {"tokenizer.ggml.model": "rwkv"}, (), "could not be converted (Cannot build a tokenizer"),
        ("llama", {"llama.expert_count": 8}, (), "the setting llama.expert_count, which transformers would"),
        (
            "llama",
            {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
            (),
            "rope.scaling",
        ),
        ("llama", {"llama.attention.value_length": 4, "llama.attention.key_length": 8}, (), "value_length"),
        ("llama", {"llama.attention.head_count": None}, (), "could not be converted"),
        ("llama", {}, ("blk.1.ffn_up.weight",), "has no weights model.layers.1.mlp.up_proj.weight"),
        ("olmo", {}, (), "is of the kind 'olmo', which transformers does not read from GGUF files"),
    ],
)
def test_a_model_that_would_compute_otherwise_is_refused(
    tmp_path: Path, architecture: str, settings: dict[str, Any], missing: tuple[str, ...], expected: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", model_of(), architecture, settings=settings, missing=missing)
    done = run("read", "python-reference", "--model", path, "--out", tmp_path / "m.hmem")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2 and expected in lines[-1], lines
    assert not lines[:-1] or lines[:-1] == [f"hiermem: converting {path} once, a minute or more..."]
    assert not list(tmp_path.glob("cache/gguf-*/"))


def test_weights_that_transformers_would_pass_over_are_refused(tmp_path: Path) -> None:
    extra = {"blk.0.attn_q.bias": np.zeros(32, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", model_of(), extra=extra)
    with pytest.raises(InputError, match="they are not the same model"):
        gguf_folder(path)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_package_that_is_missing_is_named(
    llama: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"run `pip install {package}`"):
        gguf_folder(llama)


def test_a_cache_that_cannot_be_written_is_named(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HIERMEM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="set HIERMEM_CACHE to a folder that can be written"):
        gguf_folder(llama)


def test_a_disk_without_room_is_found_first(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"cannot be written .*No space left.*free some disk space"):
        gguf_folder(llama)
    assert not list(conversions.cache_dir().glob("gguf-*/"))
