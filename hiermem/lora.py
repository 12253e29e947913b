"""Adapters inside the backbone (PEFT): added for training, saved and loaded beside the memory."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from hiermem.errors import InputError, first_line
from hiermem.settings import check_settings

FOLDER = "adapter"
ADAPTER = f"{FOLDER}/adapter_model.safetensors"
"""The weights in a saved model's folder, as PEFT calls them."""

ACTIVE = "active.json"
"""Names of the adapters that are switched on, in the adapters' folder; younger than the layout."""

_CONFIG, _WEIGHTS, _DEFAULT = "adapter_config.json", "adapter_model.safetensors", "default"


@dataclass(frozen=True)
class LoraConfig:
    """Settings of the adapters (LoRA, arXiv 2106.09685).

    Attributes:
        rank: rank of the two factors; 0 trains no adapter.
        alpha: the update of a layer is scaled by ``alpha / rank``.
        targets: linear layers that get an adapter: `all-linear`, or the ends of their names.
    """

    rank: int = 0
    alpha: int = 32
    targets: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        check_settings(self)
        if self.rank < 0 or self.alpha < 1:
            raise InputError("The rank of an adapter must not be negative and its alpha at least 1.")


class BackboneAdapters:
    """transformers' methods for adapters on a model around a backbone: they are the backbone's."""

    backbone: PreTrainedModel

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Put a fresh adapter into the backbone."""
        self.backbone.add_adapter(*args, **kwargs)

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter into the backbone."""
        return self.backbone.load_adapter(*args, **kwargs)

    def delete_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Take an adapter out of the backbone."""
        self.backbone.delete_adapter(*args, **kwargs)

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Switch on these adapters and no others."""
        self.backbone.set_adapter(*args, **kwargs)

    def enable_adapters(self) -> None:
        """Switch the adapters on that `set_adapter` chose."""
        self.backbone.enable_adapters()

    def disable_adapters(self) -> None:
        """Switch all adapters off."""
        self.backbone.disable_adapters()

    def active_adapters(self) -> list[str]:
        """Names of the adapters that `set_adapter` chose."""
        return list(self.backbone.active_adapters())

    def get_adapter_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The tensors of an adapter by PEFT's names."""
        return dict(self.backbone.get_adapter_state_dict(*args, **kwargs))


def add_lora(backbone: PreTrainedModel, config: LoraConfig) -> None:
    """Put fresh adapters into ``backbone``, which then computes what it did before."""
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    lora = _peft().LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        backbone.add_adapter(lora)
    except ValueError as error:  # transformers raises it for a version of PEFT that it does not support
        raise InputError(f"The adapters cannot be added ({first_line(error)}).") from error


def has_lora(backbone: PreTrainedModel) -> bool:
    """Whether ``backbone`` carries adapters."""
    return bool(getattr(backbone, "_hf_peft_config_loaded", False))


def active_adapters(backbone: PreTrainedModel) -> list[str]:
    """Names of the adapters that ``backbone`` computes with."""
    layers = _adapted(backbone).values()
    return sorted({name for layer in layers if not layer.disable_adapters for name in layer.active_adapters})


def unusual_state(backbone: PreTrainedModel) -> str | None:
    """Which adapters are active, in words; None where there are none, or all are."""
    if not has_lora(backbone) or (active := active_adapters(backbone)) == sorted(backbone.peft_config):
        return None
    return ", ".join(active) or "all off"


def split(
    backbone: PreTrainedModel, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part a state dict into the backbone's tensors, by their names without adapters, and the adapters'.

    Args:
        backbone: the backbone with its adapters.
        state: its state dict.
    """
    wrapped = tuple(f"{name}." for name in _adapted(backbone))
    weights: dict[str, Tensor] = {}
    adapters: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        if name.startswith(wrapped) and plain == name:
            adapters[name] = tensor
        else:
            weights[plain] = tensor
    return weights, adapters


def save_adapters(
    backbone: PreTrainedModel, folder: Path, state: Mapping[str, Tensor], base_model: str | None
) -> None:
    """Write every adapter in PEFT's layout, and which are active.

    Args:
        backbone: the backbone with its adapters.
        folder: the saved model's folder.
        state: the backbone's state dict.
        base_model: name of the backbone in the adapters' configurations.
    """
    peft = _peft()
    for name, config in backbone.peft_config.items():
        place = folder / FOLDER if name == _DEFAULT else folder / FOLDER / name
        if place.parent not in (folder, folder / FOLDER):
            raise InputError(f"The adapter {name!r} cannot be saved: give it a name without a slash.")
        place.mkdir(parents=True, exist_ok=True)
        listed = _by_names(backbone, name, config)
        listed.base_model_name_or_path, listed.inference_mode = base_model, True
        listed.save_pretrained(str(place))
        tensors = peft.get_peft_model_state_dict(
            backbone, state_dict=dict(state), adapter_name=name, save_embedding_layers=False
        )
        save_file(
            {f"base_model.model.{key}": t.detach().cpu().contiguous() for key, t in tensors.items()},
            place / _WEIGHTS,
            metadata={"format": "pt"},
        )
    (folder / FOLDER / ACTIVE).write_text(json.dumps(active_adapters(backbone)) + "\n", "utf-8")


def _by_names(backbone: PreTrainedModel, adapter: str, config: Any) -> Any:
    """A copy of an adapter's configuration that lists its layers by name.

    PEFT takes regular expressions, which `hiermem.model_files` refuses in a stranger's model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    listed = copy.copy(config)
    layers = {
        name: layer
        for name, layer in _adapted(backbone).items()
        if isinstance(layer, BaseTunerLayer)
        and any(adapter in getattr(layer, part) for part in layer.adapter_layer_names)
    }
    chosen = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if isinstance(config.target_modules, str) or any(getattr(config, name, None) for name in chosen):
        listed.target_modules = sorted(layers)
        for name in chosen:
            if hasattr(listed, name):
                setattr(listed, name, None)
    for pattern, value in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        if getattr(config, pattern, None):
            values = {name: getattr(layer, value)[adapter] for name, layer in layers.items()}
            exceptions = {name: n for name, n in values.items() if n != getattr(config, value)}
            setattr(listed, pattern, exceptions)
    return listed


def load_adapters(backbone: PreTrainedModel, folder: Path) -> None:
    """Take adapters over from a folder that `save_adapters` wrote, if it holds any."""
    places = [folder / FOLDER, *(folder / FOLDER).glob("*")]
    places = sorted(place for place in places if (place / _CONFIG).is_file())
    if not places:
        return
    _peft()
    for place in places:
        if not (place / _WEIGHTS).is_file():
            raise InputError(f"The adapter at {place} lacks {_WEIGHTS}: save it again.")
        name = _DEFAULT if place == folder / FOLDER else place.name
        backbone.load_adapter(str(place), adapter_name=name)
    if (folder / FOLDER / ACTIVE).is_file():
        active = json.loads((folder / FOLDER / ACTIVE).read_text("utf-8"))
        if active:
            backbone.set_adapter(active)
        else:
            backbone.disable_adapters()


def _adapted(backbone: PreTrainedModel) -> dict[str, Any]:
    """Layers that adapters wrap, by name."""
    if not has_lora(backbone):
        return {}
    _peft()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {name: module for name, module in backbone.named_modules() if isinstance(module, kinds)}


def _peft() -> Any:
    """The package PEFT.

    Raises:
        InputError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "This model has LoRA adapters, which need PEFT: install hiermem with the extra train."
        ) from error
    return peft
