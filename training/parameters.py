"""The parameters that a training changes; all others are frozen."""

from collections.abc import Iterable

from torch import nn

from hiermem.memory.hmt.module import SummaryConfig
from hiermem.model import HierMemModel


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def freeze_all_but(model: HierMemModel, parts: Iterable[str]) -> None:
    """Let only some parts of the memory require gradients.

    Args:
        model: the model, whose other parameters are frozen.
        parts: names of parts, see `part_prefixes`; `lora` are the adapters.
    """
    prefixes = part_prefixes(model.config.summary)
    trained = tuple(prefix for part in parts if part != "lora" for prefix in prefixes[part])
    lora = "lora" in parts
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(trained) or (lora and is_lora(name)))


def part_prefixes(summary: SummaryConfig) -> dict[str, tuple[str, ...]]:
    """Beginnings of the names of the parameters of each part.

    | part | parameters |
    | --- | --- |
    | `prompt` | the prompt that segments are read with: P_0, and T where all is trained as published |
    | `recall` | what is recalled: W_c and W_v of a residual memory, whose keys are fitted; else W_q and W_k |
    | `keys` | W_q and W_k of a residual memory that is not fitted |
    | `search` | T, which with the query `previous` summarises only questions |
    | `mamba` | the Mamba heads |
    | `states` | the encoder of the backbone's states |
    | `kv` | the prompt in front of recalled keys and values, and the changes of these |
    """
    summary_prompt = ("summary.summary_prompt.",)
    published = summary.query == "half" and not summary.residual and summary.last > 0
    projections = ("summary.query.", "summary.key.")
    return {
        "prompt": ("summary.first_prompt.", *(summary_prompt if published else ())),
        "recall": ("summary.content.", "summary.value.") if summary.residual else projections,
        "keys": projections if summary.query == "half" else projections[1:],
        "search": summary_prompt,
        "mamba": ("mamba.",),
        "kv": ("kv_prompt.",),
        "states": ("state_encoder.",),
    }


def is_lora(name: str) -> bool:
    """Whether a parameter is of an adapter, by its name."""
    return ".lora_" in name
