"""Tiny GGUF files, written by the package gguf, of models whose weights are known."""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import CONFIGS
from readers import VOCABULARY, tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
pytest.importorskip("accelerate", reason="transformers loads GGUF models with accelerate only")

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
_KINDS = dict(zip((bool, int, float, str), map(gguf.GGUFValueType, (7, 4, 6, 8)), strict=True))
_CONTROL = ("<pad>", "<s>", "</s>")


def model_of(family: str = "llama", **changes: Any) -> PreTrainedModel:
    """A random model of a family that fits the tests' tokenizer, float32, with embeddings tied."""
    config = copy.deepcopy(CONFIGS[family])
    config.vocab_size, config.tie_word_embeddings = VOCABULARY, True
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    architecture: str = "llama",
    stored: str = "F32",
    settings: Mapping[str, Any] | None = None,
    missing: Iterable[str] = (),
    extra: Mapping[str, np.ndarray] | None = None,
    change: Callable[[Any], None] = lambda writer: None,
) -> Path:
    """Write a model as llama.cpp's converters do.

    Args:
        stored: type of the weight matrices.
        settings: in place of what the file says usually, or besides it; None leaves a setting out.
        missing: names of tensors that are left out.
        extra: tensors besides the model's.
        change: what else is to be written into the header.
    """
    if architecture not in gguf.MODEL_ARCH_NAMES.values():
        pytest.skip(f"this version of gguf does not know {architecture}")
    writer = gguf.GGUFWriter(path, architecture)
    every = {**_header(model, architecture), **_vocabulary(), **(settings or {})}
    for name, value in every.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_key_value(name, value, _KINDS[type(value)])
    change(writer)
    for name, values in {**_tensors(model, architecture), **(extra or {})}.items():
        if name not in missing:
            kind = gguf.GGMLQuantizationType[stored if values.ndim == 2 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _header(model: PreTrainedModel, architecture: str) -> dict[str, Any]:
    config = model.config
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": 10000.0,
    }
    if architecture == "llama":
        values |= {"vocab_size": config.vocab_size, "rope.dimension_count": config.head_dim}
    if architecture == "gemma3":
        values |= {"attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 24}
        values["rope.freq_base"] = 1_000_000.0
    return {f"{architecture}.{name}": value for name, value in values.items()}


def _vocabulary() -> dict[str, Any]:
    core = tokenizer().backend_tokenizer
    tokens = sorted(core.get_vocab(), key=core.token_to_id)
    tokens += [f"<unused{index}>" for index in range(len(tokens), VOCABULARY)]
    kinds = [3 if token in _CONTROL else 5 if token.startswith("<unused") else 1 for token in tokens]
    names = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": kinds}
    names["merges"] = [" ".join(pair) for pair in merges()]
    names |= {"padding_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False}
    return {f"tokenizer.ggml.{name}": value for name, value in names.items()} | {
        "tokenizer.chat_template": TEMPLATE
    }


def merges() -> list[list[str]]:
    """The merges of the tests' tokenizer."""
    import json

    return json.loads(tokenizer().backend_tokenizer.to_str())["model"]["merges"]


def _tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    tensors = {}
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        base, _, suffix = name.rpartition(".")
        array = values.numpy()
        if architecture == "llama" and base.endswith(("q_proj", "k_proj")):
            pairs = array.reshape(-1, 2, model.config.head_dim // 2, array.shape[1])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        if architecture == "gemma3" and "norm" in name:
            array = array + 1
        tensors[f"{names.get_name(base)}.{suffix}"] = np.ascontiguousarray(array)
    return tensors
