"""The conversion of a Llama model from a quantised GGUF file to the format of transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import LlamaConfig, PreTrainedTokenizerBase

_WEIGHTS = "model.safetensors"

# GGUF tensor names to transformers ones; layer N's stand behind "blk.N." and "model.layers.N.".
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file into an empty folder, in the format of transformers.

    Raises:
        InputError: the package gguf is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(
            "Converting the bundled model needs the package gguf, which is not installed; "
            "run `pip install gguf`."
        ) from error
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    reader = GGUFReader(gguf)
    config = _config(reader)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    _tokenizer(gguf).save_pretrained(folder)
    save_file(_weights(reader), folder / _WEIGHTS, metadata={"format": "pt"})
    # save_file lets only the owner read; a shared cache needs the mode of the other files.
    shutil.copymode(folder / "config.json", folder / _WEIGHTS)


def _config(reader: GGUFReader) -> LlamaConfig:
    """The configuration that the header of the GGUF file describes."""
    from transformers import LlamaConfig

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        head_dim=field("llama.rope.dimension_count"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings=True,  # the file has no output.weight
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
    )


def _tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the GGUF file, splitting text as SmolLM2 was trained to."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers ignores the header's tokenizer.ggml.pre = "smollm", which sets every digit
    # apart; without it "\n\n1" becomes other tokens than those the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _weights(reader: GGUFReader) -> dict[str, torch.Tensor]:
    """The weights by transformers name, dequantised in float32 and rounded to bf16."""
    import torch
    from gguf import dequantize

    head_size = int(reader.fields["llama.rope.dimension_count"].contents())
    weights = {}
    for tensor in reader.tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).bfloat16()
        if tensor.name in _GLOBAL_NAMES:
            weights[_GLOBAL_NAMES[tensor.name]] = weight
            continue
        _, layer, name = tensor.name.split(".", 2)
        if name in ("attn_q.weight", "attn_k.weight"):
            # llama.cpp interleaves the two halves of a head that rotary positions turn together.
            pairs = weight.view(-1, head_size // 2, 2, weight.shape[1])
            weight = pairs.transpose(1, 2).reshape(weight.shape)
        weights[f"model.layers.{layer}.{_LAYER_NAMES[name]}"] = weight
    return weights
