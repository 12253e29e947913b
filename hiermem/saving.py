"""Models on disk: the memory's parameters, and of the backbone its name, or its weights where they changed.

`model.safetensors` holds, by the names of `HierMemModel.state_dict`, whatever the named backbone does not:
the memory's parameters, adapters, and a backbone that was trained, resized, merged or never had a name. So
transformers' Trainer finds in a checkpoint all that it trained. Adapters stand in PEFT's layout, too.
"""

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from hiermem import lora
from hiermem.card import base_model, card
from hiermem.config import FORMAT_VERSION, HierMemConfig
from hiermem.errors import InputError, first_line
from hiermem.fingerprint import is_elsewhere
from hiermem.loading import model_type
from hiermem.memory_parameters import memory_parameters
from hiermem.model_folder import BACKBONE, INDEX, SAMPLE, WEIGHTS, finish, replacing
from hiermem.pretrained import HierMemPreTrainedModel
from hiermem.retrieval.files import is_memory
from hiermem.seal import CARD, SEAL

_AUTO_MAP = {
    "AutoConfig": "configuration_hiermem.HierMemConfig",
    "AutoModelForCausalLM": "modeling_hiermem.HierMemModel",
}
_FORWARDING = """\"\"\"Needs hiermem: pip install hiermem-torch.\"\"\"

from {module} import {name}

__all__ = ["{name}"]
"""


@dataclass(frozen=True)
class PushOptions:
    """Where a saved model is uploaded to, as transformers' `push_to_hub` calls it."""

    repo_id: str | None = None
    token: str | bool | None = None
    private: bool | None = None
    revision: str | None = None
    commit_message: str | None = None
    commit_description: str | None = None
    create_pr: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "PushOptions":
        """The options of a call, by their names.

        Raises:
            InputError: one is unknown.
        """
        for unknown in arguments.keys() - {option.name for option in fields(cls)}:
            raise InputError(f"save_pretrained() has no option {unknown!r}: leave it out.")
        return cls(**arguments)


@dataclass(frozen=True)
class _Parts:
    """Content of a saved model.

    Attributes:
        tensors: of `model.safetensors`, by name.
        whole: whether the backbone's weights are among them.
        backbone: the backbone's state dict, adapters included.
    """

    tensors: dict[str, Tensor]
    whole: bool
    backbone: dict[str, Tensor] = field(repr=False)


def save(
    model: HierMemPreTrainedModel,
    save_directory: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor] | None,
    max_shard_size: int | str,
) -> None:
    """Write a model's folder anew, old or new as a whole; see `HierMemModel.save_pretrained`."""
    folder = Path(save_directory)
    check_target(folder)
    parts = _parts(model, model.state_dict() if state_dict is None else state_dict)
    with replacing(folder) as staging:
        _write_config(model, staging)
        _write_tensors(parts.tensors, staging, max_shard_size)
        if parts.whole:
            model.backbone.config.save_pretrained(staging / BACKBONE)
        if lora.has_lora(model.backbone):
            named = base_model(model.config.backbone)
            lora.save_adapters(model.backbone, staging, parts.backbone, named)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(staging)
        if model.generation_config is not None:
            _write_generation_config(model.generation_config, staging)
        (staging / CARD).write_text(card(model.config.backbone, parts.whole), "utf-8")
    model.name_or_path = str(folder.resolve())


def push(folder: str | os.PathLike[str], options: PushOptions) -> str:
    """Upload what `save` wrote to the hub, and nothing else that is in ``folder``; where to, as a URL."""
    from huggingface_hub import HfApi

    name = options.repo_id or Path(folder).resolve().name
    api = HfApi(token=options.token)
    repo = api.create_repo(name, private=options.private, exist_ok=True).repo_id
    files = [SEAL, *json.loads((Path(folder) / SEAL).read_text("utf-8"))["files"]]
    done = api.upload_folder(
        repo_id=repo,
        folder_path=Path(folder),
        allow_patterns=files,
        revision=options.revision,
        commit_message=options.commit_message or "Upload model",
        commit_description=options.commit_description,
        create_pr=options.create_pr,
    )
    return str(done.commit_url)


def save_and_push(
    model: HierMemPreTrainedModel, repo_id: str, max_shard_size: int | str, arguments: Any
) -> str:
    """Upload a model without keeping a copy; see `HierMemModel.push_to_hub`."""
    options = PushOptions.of({"repo_id": repo_id, **arguments})
    before = model.name_or_path
    with TemporaryDirectory() as folder:
        save(model, folder, None, max_shard_size)
        model.name_or_path = before
        return push(folder, options)


def check_target(folder: Path) -> None:
    """Refuse a folder with another model, which would be overwritten, or with a memory.

    Raises:
        InputError: so it is.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder.")
    if is_memory(folder):
        raise InputError(f"{folder} holds the memory of a document: give a folder of its own.")
    finish(folder)
    if (folder / SEAL).is_file():
        return
    foreign = InputError(f"{folder} holds another model, maybe the backbone: give a folder of its own.")
    if (folder / "config.json").exists():
        if model_type(folder) != HierMemConfig.model_type:
            raise foreign
    elif (folder / WEIGHTS).exists() or (folder / INDEX).exists():
        raise foreign


def _parts(model: HierMemPreTrainedModel, state: Mapping[str, Tensor]) -> _Parts:
    prefix = f"{BACKBONE}."
    backbone = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    weights, adapters = lora.split(model.backbone, backbone)
    loaded = model.loaded_weights
    whole = loaded is None or loaded.changed(weights)
    tensors = memory_parameters(model, state)
    tensors |= {prefix + name: tensor.detach() for name, tensor in adapters.items()}
    if whole:
        _check_whole(model.backbone, weights)
        tensors |= {prefix + name: t.detach() for name, t in _untied(model.backbone, weights).items()}
    return _Parts(tensors, whole, backbone)


def _check_whole(backbone: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Refuse to save a changed backbone that is not all here, or not in numbers that can be saved."""
    if not weights or any(is_elsewhere(tensor) for tensor in weights.values()):
        raise InputError(
            "The backbone was changed and its weights are not all here: gather them, or give state_dict."
        )
    if getattr(backbone, "is_quantized", False):
        raise InputError(
            "The backbone is quantised and is not what its name stands for: add adapters to it, or load it "
            "without quantization_config before it is changed."
        )
    with torch.device("meta"):
        fresh = type(backbone)(copy.deepcopy(backbone.config)).state_dict()
    wrong = sorted(weights.keys() ^ fresh.keys())
    wrong += sorted(
        name for name in weights.keys() & fresh.keys() if weights[name].shape != fresh[name].shape
    )
    if wrong:
        raise InputError(
            f"The backbone is not what its configuration makes ({', '.join(wrong[:3])} differ), and could "
            f"not be loaded again: merge what a PeftModel added, or add it as an adapter of the model."
        )


def _untied(backbone: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without second names of the same ones, which loading ties again."""
    tied = getattr(backbone, "all_tied_weights_keys", None) or {}
    repeated = {
        name for name, first in tied.items() if name in weights and _same(weights[name], weights.get(first))
    }
    return {name: tensor for name, tensor in weights.items() if name not in repeated}


def _same(first: Tensor, second: Tensor | None) -> bool:
    return second is not None and first.data_ptr() == second.data_ptr() and first.shape == second.shape


def _write_config(model: HierMemPreTrainedModel, staging: Path) -> None:
    values = {
        **model.config.to_dict(),
        "architectures": [_AUTO_MAP["AutoModelForCausalLM"].partition(".")[2]],
        "auto_map": _AUTO_MAP,
        "format_version": max(FORMAT_VERSION, model.config.format_version),
    }
    if model.loaded_weights is not None:
        values[SAMPLE] = model.loaded_weights.sample
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    (staging / "config.json").write_text(text, "utf-8")
    for reference, module in zip(_AUTO_MAP.values(), ("hiermem.config", "hiermem.model"), strict=True):
        file, _, name = reference.partition(".")
        (staging / f"{file}.py").write_text(_FORWARDING.format(module=module, name=name), "utf-8")


def _write_tensors(tensors: dict[str, Tensor], staging: Path, max_shard_size: int | str) -> None:
    from huggingface_hub import save_torch_state_dict

    if not tensors:  # of which it would write nothing
        save_file({}, staging / WEIGHTS, metadata={"format": "pt"})
        return
    save_torch_state_dict(
        {name: _own_storage(tensor.cpu()) for name, tensor in tensors.items()},
        staging,
        max_shard_size=max_shard_size,
        metadata={"format": "pt"},
    )


def _own_storage(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: DeepSpeed keeps many in one, which safetensors takes for ties."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_generation_config(config: GenerationConfig, staging: Path) -> None:
    try:
        config.save_pretrained(staging)
    except ValueError as error:
        raise InputError(f"The generation config cannot be saved ({first_line(error)}): mend it.") from error
