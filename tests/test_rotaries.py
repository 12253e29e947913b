"""How each layer rotates its keys is found by trying, so that a moved frame is right for any family."""

from typing import Any

import pytest
import torch
from readers import backbone, ids_of, over
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hiermem.backbone import Backbone
from hiermem.errors import BackboneUnsupportedError
from hiermem.memory.working_config import WorkingMemoryConfig

COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "smollm3": {},  # some layers do not rotate
    "cohere2": {"sliding_window": 24},  # full layers do not rotate
    "exaone4": {"sliding_window": 24, "sliding_window_pattern": 4},
    "nanochat": {},  # rotates the other way
    "gemma3_text": {"head_dim": 8, "sliding_window": 24},  # two tables of frequencies
    "olmo2": {},
    "granite": {},
    "phi": {},
    "stablelm": {},
    "starcoder2": {},
}
UNKNOWN: dict[str, dict[str, Any]] = {
    "minicpm3": {**LATENT, "q_lora_rank": 16},  # the last dimensions rotate
}


def built(family: str, settings: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**COMMON, **settings})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_moved_frame_changes_nothing_within_the_range(family: str) -> None:
    """All live tokens lie within the range, so moved positions must give what counting on for ever gives."""
    model, ids = built(family, FAMILIES[family]), ids_of(96)
    common: dict[str, Any] = {"policy": "window", "budget": 24, "sinks": 0, "update_interval": 8}
    common["trained_range"] = 40
    moved, counted = (
        over(model, 8, positions=mode, **common)(ids).logits for mode in ("distance", "absolute")
    )
    torch.testing.assert_close(moved, counted, atol=1e-4, rtol=1e-4)


def test_some_layers_do_not_rotate() -> None:
    rotaries = [shape.rotary for shape in Backbone(built("smollm3", {})).geometries]
    assert any(rotary is None for rotary in rotaries)
    assert any(rotary is not None for rotary in rotaries)


@pytest.mark.parametrize("family", UNKNOWN)
def test_an_unknown_rotation_is_refused(family: str) -> None:
    with pytest.raises(BackboneUnsupportedError, match="rotates its keys"):
        Backbone(built(family, UNKNOWN[family]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_finds_the_same(dtype: torch.dtype) -> None:
    for family in ("llama", "gemma3", "gpt-neox"):
        low, full = Backbone(backbone(family, dtype)).geometries, Backbone(backbone(family)).geometries
        for one, other in zip(low, full, strict=True):
            assert one.rotary is not None
            assert other.rotary is not None
            torch.testing.assert_close(one.rotary.frequencies, other.rotary.frequencies, atol=1e-2, rtol=1e-2)
            assert one.rotary.interleaved == other.rotary.interleaved


def test_looking_for_rotations_leaves_the_mode_as_it_was() -> None:
    model = backbone("llama").train()
    Backbone(model)
    assert model.training


def test_gradient_checkpointing_is_refused_in_words() -> None:
    model = backbone("llama").train()
    model.gradient_checkpointing_enable()
    adapter = Backbone(model)
    memory = adapter.new_memory(WorkingMemoryConfig(update_interval=16))
    with pytest.raises(BackboneUnsupportedError, match="checkpointing"):
        adapter.read_chunk(memory, ids_of(8), [8])
