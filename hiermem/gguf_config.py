"""The configuration of a GGUF file's model, with the settings that transformers leaves aside."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.gguf_file import GgufFile

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROPE_FACTORS = "rope_freqs.weight"

# Settings of a GGUF file by what they are called in transformers' configurations.
_CALLED = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
# Settings that are looked at below, that shapes of weights tell again, or that llama.cpp alone needs.
_SEEN = {
    "attention.causal",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "use_parallel_residual",
    "vocab_size",
}


def check_settings(file: GgufFile) -> None:
    """Refuse a kind of model that transformers does not read, and settings that nobody here looks at.

    Raises:
        InputError: so it is.
    """
    from transformers.integrations import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    if file.architecture in GGUF_CONFIG_ARCHS:
        return  # transformers has a function of its own for them
    alike = {_letters(name): names for name, names in GGUF_CONFIG_MAPPING.items()}
    if (mapped := alike.get(_letters(file.architecture))) is None:
        raise InputError(
            f"The model in {file.path} is of the kind {file.architecture!r}, which transformers does not "
            f"read from GGUF files: give the model's own folder."
        )
    for name in file.settings():
        if name not in mapped and name not in _CALLED and name not in _SEEN:
            raise _left_aside(file, name)


def _letters(name: str) -> str:
    return name.replace("_", "").replace("-", "")


def config_of(file: GgufFile) -> PreTrainedConfig:
    """The configuration that the file describes.

    Raises:
        InputError: the model has a setting that transformers would leave aside.
    """
    from transformers import AutoConfig

    read = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    names = ("_model_name_or_path", "_name_or_path", "quantization_config", "unk_token_id")
    config = type(read)(**{key: value for key, value in read.to_dict().items() if key not in names})
    for name, called in _CALLED.items():
        if (value := file.setting(name)) is not None and not isinstance(value, list):
            if hasattr(config, called):
                setattr(config, called, value)
            elif name == "attention.key_length":
                _check_equal(file, name, value, config.hidden_size // config.num_attention_heads)
            else:
                raise _left_aside(file, name)
    keys, values = file.setting("attention.key_length"), file.setting("attention.value_length")
    _check_equal(file, "attention.value_length", values, keys)
    _rotate(config, file)
    turn = file.get("tokenizer.ggml.eot_token_id")  # chat models end what they say with it
    if turn is not None and isinstance(config.eos_token_id, int) and turn != config.eos_token_id:
        config.eos_token_id = [config.eos_token_id, turn]
    return config


def _check_equal(file: GgufFile, name: str, value: Any, other: Any) -> None:
    if value is not None and other is not None and value != other:
        raise _left_aside(file, name)


def _left_aside(file: GgufFile, name: str) -> InputError:
    return InputError(
        f"The model in {file.path} has the setting {file.architecture}.{name}, which transformers would "
        f"leave aside and so compute something else: give the model's own folder."
    )


# ---- positions


def _rotate(config: PreTrainedConfig, file: GgufFile) -> None:
    """Set how positions are stretched, and how much of a head they turn."""
    rope = getattr(config, "rope_parameters", None)
    width, stretched = file.setting("rope.dimension_count"), _stretched(config, file)
    if not rope:
        if stretched:
            raise _left_aside(file, "rope.scaling.type")
        return
    whole = rope.get("full_attention", rope)  # a sliding window's layers are not stretched
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width is not None and round(head * whole.get("partial_rotary_factor", 1)) != width:
        if "partial_rotary_factor" not in whole:
            raise _left_aside(file, "rope.dimension_count")
        whole["partial_rotary_factor"] = width / head
    if whole.get("rope_type", "default") == "default":
        whole |= stretched


def _stretched(config: PreTrainedConfig, file: GgufFile) -> dict[str, Any]:
    """The parameters of stretched positions in transformers' words; empty where they are as they are.

    Raises:
        InputError: they are stretched in a way that is not known here.
    """
    kind, factor = file.setting("rope.scaling.type", "none"), file.setting("rope.scaling.factor", 1.0)
    trained = file.setting("rope.scaling.original_context_length")
    if (factors := file.values(ROPE_FACTORS)) is not None:
        return _as_llama3(config, file, factors)
    if kind == "none" or factor in (0.0, 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and trained and file.setting("rope.scaling.attn_factor", 1.0) == 1.0:
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
    raise _left_aside(file, "rope.scaling.type")


def _as_llama3(config: PreTrainedConfig, file: GgufFile, factors: list[float]) -> dict[str, Any]:
    """The parameters by which Llama 3.1 came to factors of its frequencies, where those are all that is left.

    Raises:
        InputError: these are other factors.
    """
    theta, low, high, trained = config.rope_parameters["rope_theta"], 1.0, 4.0, 8192
    stretch = max(factors)
    expected = []
    for index in range(len(factors)):
        turns = trained * theta ** (-index / len(factors)) / (2 * pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        expected.append(1 / ((1 - smooth) / stretch + smooth))
    if any(abs(one - other) > 1e-3 * other for one, other in zip(factors, expected, strict=True)):
        raise _left_aside(file, ROPE_FACTORS.removesuffix(".weight"))
    return {
        "rope_type": "llama3",
        "factor": stretch,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": trained,
    }
