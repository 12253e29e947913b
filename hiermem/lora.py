"""LoRA adapters inside the backbone (PEFT): added for training, saved and loaded beside the memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hiermem.errors import InputError

FOLDER = "adapter"
ADAPTER = f"{FOLDER}/adapter_model.safetensors"
"""The weights in a saved model's folder, as PEFT calls them."""


@dataclass(frozen=True)
class LoraConfig:
    """Settings of the adapters (arXiv 2106.09685).

    Attributes:
        rank: of the two factors; 0 trains no adapter.
        alpha: what is added is scaled by ``alpha / rank``.
        targets: linear layers that get one: `all-linear`, or the ends of their names.
    """

    rank: int = 0
    alpha: int = 32
    targets: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 1:
            raise InputError("The rank of an adapter must not be negative and its alpha at least 1.")


def add_lora(backbone: PreTrainedModel, config: LoraConfig) -> None:
    """Put fresh adapters into ``backbone``, which then computes what it did before."""
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    made = _peft().LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    backbone.add_adapter(made)


def has_lora(backbone: PreTrainedModel) -> bool:
    """Whether ``backbone`` carries adapters."""
    return bool(getattr(backbone, "_hf_peft_config_loaded", False))


def save_lora(backbone: PreTrainedModel, folder: Path) -> None:
    """Write the adapters alone, in PEFT's layout."""
    backbone.save_pretrained(folder / FOLDER)


def load_lora(backbone: PreTrainedModel, folder: Path) -> None:
    """Take adapters over from a folder that `save_lora` wrote, if it holds any."""
    if (folder / FOLDER / "adapter_config.json").exists():
        _peft()
        backbone.load_adapter(str(folder / FOLDER))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "This model has LoRA adapters, which need PEFT: install hiermem with the extra train."
        ) from error
    return peft
