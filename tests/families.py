"""Tiny random models of every supported family: made from configurations, nothing is downloaded."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

RANGE = 64
"""Positions that the tiny models are said to be trained on."""

_COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": RANGE,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
_GQA = _COMMON | {"num_key_value_heads": 2, "head_dim": 8}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS = {
    "llama": LlamaConfig(**_GQA),
    "llama-scaled": LlamaConfig(
        **_GQA, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    ),
    "llama-yarn": LlamaConfig(
        **_GQA,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral": MistralConfig(**_GQA, sliding_window=24),
    "qwen2": Qwen2Config(**(_COMMON | {"num_key_value_heads": 2})),
    "qwen3": Qwen3Config(**_GQA),
    "gemma2": Gemma2Config(
        **_GQA,
        sliding_window=24,
        layer_types=_SLIDING,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        attn_implementation="eager",  # sdpa of transformers 5.18 leaves the softcap out
    ),
    "gemma3": Gemma3TextConfig(**_GQA, sliding_window=24, layer_types=_SLIDING, query_pre_attn_scalar=8),
    "phi3": Phi3Config(
        **(_COMMON | {"num_key_value_heads": 2}),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "gpt-neox": GPTNeoXConfig(
        **_COMMON,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    ),
    "opt": OPTConfig(
        vocab_size=97,
        hidden_size=32,
        ffn_dim=48,
        word_embed_proj_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=RANGE,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        init_std=0.2,
    ),
    "gpt2": GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=RANGE,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    ),
}
ROTARY = [name for name in CONFIGS if name not in ("opt", "gpt2")]


def tiny(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A randomly initialised model of ``family``, in evaluation mode.

    Where it normalises keys, they are weighted: without weights all of their norms are one but for rounding,
    and a policy that compares norms has nothing to choose by.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if "k_norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model
